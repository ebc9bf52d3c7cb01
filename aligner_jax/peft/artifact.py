"""Saves and loads adapters as one safetensors file, which records the method, its options and the base.

`read_artifact` also reads adapters in the formats of other projects.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.templates import TEMPLATES
from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file, is_folder
from aligner_jax.files.fields import Fields, shown
from aligner_jax.files.identity import identity
from aligner_jax.files.json_text import parse_object
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft import METHODS, Adapter, Options, complete_options
from aligner_jax.peft.adapter_file import (
    VERSION,
    AdapterFile,
    adapter_bytes,
    arrays_of,
    packed,
    read_adapter_file,
    read_adapter_header,
)
from aligner_jax.peft.canary import Canary, parse_canary
from aligner_jax.peft.canary_logits import LoadedBase, compute_canary, is_loaded
from aligner_jax.peft.compact import AdapterDtype, check_dtype, rounded
from aligner_jax.peft.hf_peft import load_peft
from aligner_jax.peft.location import check_no_base, locate_adapter
from aligner_jax.peft.released import load_released
from aligner_jax.peft.shapes import check_shapes
from aligner_jax.runtime.files import write_atomically
from aligner_jax.weights.finite import check_finite

_TEMPLATES = ("none", *TEMPLATES)
"""Templates that a file of this release can record."""


class FingerprintedBase(Protocol):
    """Fields of a base that an artifact records and checks."""

    @property
    def config(self) -> LlamaConfig: ...
    @property
    def fingerprint(self) -> str: ...


def save_adapter(
    adapter: Adapter,
    path: str | Path,
    base: FingerprintedBase | None = None,
    *,
    prompt_format: dict[str, str | None] | None = None,
    canary: Canary | bool = True,
    dtype: AdapterDtype = "float32",
) -> None:
    """Writes an adapter as a safetensors file, atomically.

    Equal adapters with equal canaries have equal bytes. A canary depends on the base's weights, dtype, quantization and
    tokenizer, on the prompt format, and on the order of sums, which may differ between devices and versions of JAX.

    The metadata are format, format_version, method, options (JSON), base_config (JSON), base_fingerprint, and a digest
    of everything else in the file. Without a base, base_config and base_fingerprint are omitted, and the file loads
    with any base that it fits. If the base is quantized, base_quantization records that for information only; the
    fingerprint is that of the base before quantization, so the adapter loads with both.

    A base with weights also gives a canary, by which `aligner_jax.verify` tells a model that lost the adapter: two
    forward passes over four short prompts. It is omitted if a logit is not finite.

    Args:
      adapter: an adapter of any method.
      path: path of the file, by convention with the suffix .safetensors.
      base: the base that the adapter was trained on.
      prompt_format: prompt format of the training data ({"template": "chat", "system": ""}), to be used for generation
        too; `Artifact.prompt_format` returns it.
      canary: True computes it, if the base has weights; False records none; or the canary of the same adapter and base.
      dtype: form of the arrays in the file, from which they load as float32: "float32", or for a smaller file
        "bfloat16", "int8", "int4" or "coded" (integers with a Huffman code), see docs/adapter_files.md. The canary is
        that of the rounded adapter. "float32" rounds nothing: arrays of bfloat16 and float16 stay what they are.

    Raises:
      InputError: the file cannot be written, an array has a dtype other than float32, bfloat16 and float16 or numbers
        that `dtype` cannot hold, or the prompt format has an unknown field or template or a value of another type.
    """
    check_dtype(dtype)
    metadata = {
        "format": "aligner_jax",
        "format_version": VERSION,
        "method": adapter.method,
        "options": json.dumps(adapter.options.as_dict(), sort_keys=True),
    }
    if base is not None:
        metadata["base_config"] = json.dumps(identity(base.config), sort_keys=True)
        metadata["base_fingerprint"] = base.fingerprint
        if (quantization := getattr(base, "quantization", None)) is not None:
            metadata["base_quantization"] = str(quantization)
    if prompt_format is not None:
        _check_prompt_format(prompt_format)
        metadata["prompt_format"] = json.dumps(prompt_format, sort_keys=True)
    if canary is True:
        loaded = cast(LoadedBase, base) if is_loaded(base) else None
        written = adapter if loaded is None else rounded(adapter, dtype).adapter
        canary = loaded is not None and (compute_canary(loaded, written, _format(prompt_format)) or False)
    if canary:
        metadata["canary"] = canary.as_json()
    tensors = {name: np.asarray(leaf) for name, leaf in adapter.trainable.items()}
    content = AdapterFile(metadata, tensors)
    write_atomically(Path(path), adapter_bytes(content if dtype == "float32" else packed(content, dtype)))


class RecordedBase(NamedTuple):
    """The base that an adapter was saved with, as its file describes it."""

    config: LlamaConfig
    fingerprint: str
    quantization: str | None = None


@dataclasses.dataclass(frozen=True)
class Artifact:
    """Content of an adapter's file.

    Attributes:
      path: the file, or the PEFT folder.
      adapter: the adapter.
      base: the base that it was saved with; None if the file does not name one, as in other projects' formats.
      metadata: metadata of the file; empty for other projects' formats.
    """

    path: Path
    adapter: Adapter
    base: RecordedBase | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def prompt_format(self) -> PromptFormat | None:
        """Prompt format of the training data; None if the file does not record one.

        It is parsed here, since an adapter whose file records a wrong one can still be used without it.

        Raises:
          InputError: the file's metadata field is not a prompt format.
        """
        return recorded_prompt_format(self.path, self.metadata)

    @property
    def canary(self) -> Canary | None:
        """Canary of the adapter; None if the file does not record one. It is parsed here, as `prompt_format` is.

        Raises:
          InputError: the file's metadata field is not a canary.
        """
        if "canary" not in self.metadata:
            return None
        fields = _json(self.path, self.metadata, "canary")
        return parse_canary(Fields(fields, self.path, prefix="its metadata field 'canary': "))


def recorded_prompt_format(path: Path | str, metadata: Mapping[str, str]) -> PromptFormat | None:
    """Returns the prompt format in an adapter's metadata, None if there is none.

    Raises:
      InputError: the field is not a prompt format; the message begins with `path`.
    """
    if "prompt_format" not in metadata:
        return None
    found = Fields(_json(path, metadata, "prompt_format"), path, prefix="its metadata field 'prompt_format': ")
    template, system = (found.text(name) if found.has(name) else None for name in ("template", "system"))
    return None if template is None else PromptFormat(template, system)


def load_adapter(path: str | Path, base: FingerprintedBase | None = None) -> Adapter:
    """Returns the adapter that `read_artifact` reads, without the rest of the file's content."""
    return read_artifact(path, base).adapter


def read_artifact(path: str | Path, base: FingerprintedBase | None = None, *, on_host: bool = False) -> Artifact:
    """Reads an adapter that `save_adapter` wrote, or one in a format of another project.

    The other formats are .pth files of the Aligner authors and of lit-llama's LLaMA-Adapters (see `released`), and
    folders of Hugging Face PEFT (see `hf_peft`). They do not name their base, so only their shapes are checked.

    Args:
      path: the file, a folder that holds it, or a hub name; see `locate_adapter`.
      base: the base to apply the adapter to. If it is None and the file does not name a base, shapes are checked
        against the options only.
      on_host: True for NumPy arrays of this project's files, for which no device and no compilation is needed.

    Raises:
      InputError: the file does not exist, is not an adapter, is damaged, or was trained on another base.
    """
    path = locate_adapter(path)
    check_no_base(path)
    if is_folder(path):
        return Artifact(path, load_peft(path, base.config if base is not None else None))
    if path.suffix == ".pth":
        return Artifact(path, _load_released(path, base.config if base is not None else None))
    content = read_adapter_file(path)
    metadata, tensors = content.metadata, arrays_of(content, path)
    recorded, fingerprint = _recorded_config(path, metadata), metadata.get("base_fingerprint")
    if base is not None:
        _check_config(path, recorded, base.config)
        _check_fingerprint(path, recorded, fingerprint, base)
    method, options = _method_and_options(path, metadata, tensors, base.config if base is not None else recorded)
    arrays: Any = {name: np.array(x) if on_host else jnp.asarray(x) for name, x in tensors.items()}
    return Artifact(
        path,
        Adapter(arrays, method=method, options=options),
        RecordedBase(recorded, fingerprint, metadata.get("base_quantization")) if recorded and fingerprint else None,
        metadata,
    )


def read_shapes(path: str | Path, config: LlamaConfig) -> Adapter:
    """Returns an adapter with a `jax.ShapeDtypeStruct` for every array; takes what `read_artifact` takes.

    Arrays of this project's files are not read, and the base's fingerprint is not checked.

    Args:
      path: the file, a folder that holds it, or a hub name; see `locate_adapter`.
      config: configuration of the base to apply the adapter to.

    Raises:
      InputError: the file does not exist, is not an adapter, or was trained on a base of another configuration.
    """
    path = locate_adapter(path)
    if is_folder(path) or path.suffix == ".pth":
        adapter = load_peft(path, config) if is_folder(path) else _load_released(path, config)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), adapter)
    header = read_adapter_header(path)
    _check_config(path, _recorded_config(path, header.metadata), config)
    method, options = _method_and_options(path, header.metadata, header.shapes, config)
    return Adapter(header.shapes, method=method, options=options)  # pyright: ignore[reportArgumentType]


def _method_and_options(
    path: Path,
    metadata: Mapping[str, str],
    tensors: Mapping[str, np.ndarray | jax.ShapeDtypeStruct],
    config: LlamaConfig | None,
) -> tuple[str, Options]:
    """Returns the method and the complete options of a file, which its tensors fit."""
    method = metadata["method"]
    if method not in METHODS:
        raise InputError(f"{path} holds an adapter of method {method!r}, which is not one of {', '.join(METHODS)}")
    options = _complete_options(path, method, config, _json(path, metadata, "options"))
    check_shapes(path, tensors, method, options, config)
    return method, options


def _load_released(path: Path, config: LlamaConfig | None) -> Adapter:
    if not is_file(path):
        raise InputError(f"{path} does not exist, or is not a file")
    adapter = load_released(path)
    options = _complete_options(path, adapter.method, config, adapter.options.as_dict())
    arrays = {name: np.asarray(leaf) for name, leaf in adapter.trainable.items()}
    for name, array in arrays.items():
        check_finite(array, f"{path}: tensor {name!r}")
    check_shapes(path, arrays, adapter.method, options, config)
    return adapter


def _json(path: Path | str, metadata: Mapping[str, str], name: str) -> dict:
    return parse_object(metadata.get(name, ""), f"{path}: its metadata field {name!r}")


def _recorded_config(path: Path, metadata: Mapping[str, str]) -> LlamaConfig | None:
    if "base_config" not in metadata:
        return None
    return LlamaConfig.from_fields(
        Fields(_json(path, metadata, "base_config"), path, prefix="its metadata field 'base_config': ")
    )


def _check_prompt_format(prompt_format: Mapping[str, object]) -> None:
    for name in prompt_format:
        if name not in ("template", "system"):
            raise InputError(f"prompt_format has the field {shown(name)}; it has template and system only")
    template, system = prompt_format.get("template"), prompt_format.get("system")
    if not isinstance(template, str) or template not in _TEMPLATES:
        raise InputError(f"prompt_format's template is {shown(template)}, but should be one of {', '.join(_TEMPLATES)}")
    if not isinstance(system, str | None):
        raise InputError(f"prompt_format's system is {shown(system)}, but should be text or None")


def _format(prompt_format: Mapping[str, str | None] | None) -> PromptFormat | None:
    if prompt_format is None:
        return None
    return PromptFormat(str(prompt_format["template"]), prompt_format.get("system"))


def _complete_options(path: Path, method: str, config: LlamaConfig | None, options: dict) -> Options:
    try:
        return complete_options(method, config, options)
    except InputError as error:
        fits = " does not fit this base" if config is not None else ""
        raise InputError(f"{path}{fits}: {error}") from error


def _check_config(path: Path, recorded: LlamaConfig | None, config: LlamaConfig) -> None:
    theirs, ours = dataclasses.asdict(recorded or config), dataclasses.asdict(config)
    differences = [f"{name} {theirs[name]} against {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if differences:
        raise InputError(f"{path} was trained on another model than this base: {', '.join(differences)}")


def _check_fingerprint(
    path: Path, recorded: LlamaConfig | None, fingerprint: str | None, base: FingerprintedBase
) -> None:
    if fingerprint is None and recorded is None:
        return
    if fingerprint != base.fingerprint:
        raise InputError(
            f"{path} was trained on a base of the same shape with other weights "
            f"(fingerprint {fingerprint and fingerprint[:12]} against {base.fingerprint[:12]})"
        )
