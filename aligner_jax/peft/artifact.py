"""The file an adapter ships as: one safetensors file that says what it is and which base it belongs to.

Adapters of other projects are read by the same function, and have no such file.
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file, is_folder
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import parse_object
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft import METHODS, Adapter, Options, complete_options
from aligner_jax.peft.adapter_file import FORMAT_VERSION, AdapterFile, adapter_bytes, read_adapter_file
from aligner_jax.peft.hf_peft import load_peft
from aligner_jax.peft.released import load_released
from aligner_jax.peft.shapes import check_shapes
from aligner_jax.runtime.files import write_atomically
from aligner_jax.weights.finite import check_finite


class FingerprintedBase(Protocol):
    """What an artifact records of a base, and checks."""

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
) -> None:
    """Writes an adapter as safetensors, whole or not at all; the same adapter gives the same bytes.

    The metadata are format_version, method, options (JSON), base_config (JSON), base_fingerprint and the digest of all
    else in the file; base_config and base_fingerprint are left out without a base, and the file is then accepted beside
    any base it fits. Over a quantized base there is
    base_quantization too, for the reader: the fingerprint is that of the base before, and fits it either way.

    Args:
      adapter: of any method.
      path: ends in .safetensors by custom.
      base: the base it was trained on.
      prompt_format: how its training data made prompts ({"template": "chat", "system": ""}), so that whoever generates
        with it can do the same; `recorded_prompt_format` reads it back.

    Raises:
      InputError: the file cannot be written (the sentence names it and says why), or an array is of a dtype other than
        float32, bfloat16 and float16.
    """
    metadata = {
        "format": "aligner_jax",
        "format_version": str(FORMAT_VERSION),
        "method": adapter.method,
        "options": json.dumps(adapter.options.as_dict(), sort_keys=True),
    }
    if base is not None:
        metadata["base_config"] = json.dumps(dataclasses.asdict(base.config), sort_keys=True)
        metadata["base_fingerprint"] = base.fingerprint
        if (quantization := getattr(base, "quantization", None)) is not None:
            metadata["base_quantization"] = str(quantization)
    if prompt_format is not None:
        metadata["prompt_format"] = json.dumps(prompt_format, sort_keys=True)
    tensors = {name: np.asarray(leaf) for name, leaf in adapter.trainable.items()}
    write_atomically(Path(path), adapter_bytes(AdapterFile(metadata, tensors)))


def load_adapter(path: str | Path, base: FingerprintedBase | None = None) -> Adapter:
    """Reads an adapter that `save_adapter` wrote, or one of another project.

    These are .pth files of the paper's authors' Aligners and of lit-llama's LLaMA-Adapters (see `released`), and the
    folders of Hugging Face PEFT (see `hf_peft`).

    Args:
      path: the file or folder. Only our own names its base, so only shapes of the others are checked against one.
      base: the base it is for; without one, and where the file names none, shapes are only checked against the options.

    Raises:
      InputError: no such file, not an adapter, damaged, or trained on another base.
    """
    path = Path(path)
    if is_folder(path):
        return load_peft(path, base.config if base is not None else None)
    if path.suffix == ".pth":
        return _load_released(path, base)
    metadata, tensors = read_adapter_file(path)
    method = metadata["method"]
    if method not in METHODS:
        raise InputError(f"{path} holds an adapter of method {method!r}, which is not one of {', '.join(METHODS)}")
    recorded = _recorded_config(path, metadata)
    if base is not None:
        _check_base(path, recorded, metadata.get("base_fingerprint"), base)
    config = base.config if base is not None else recorded
    options = _complete_options(path, method, config, _json(path, metadata, "options"))
    check_shapes(path, tensors, method, options, config)
    return Adapter({name: jnp.asarray(x) for name, x in tensors.items()}, method=method, options=options)


def _load_released(path: Path, base: FingerprintedBase | None) -> Adapter:
    if not is_file(path):
        raise InputError(f"{path} does not exist, or is not a file")
    adapter, config = load_released(path), base.config if base is not None else None
    options = _complete_options(path, adapter.method, config, adapter.options.as_dict())
    arrays = {name: np.asarray(leaf) for name, leaf in adapter.trainable.items()}
    for name, array in arrays.items():
        check_finite(array, f"{path}: tensor {name!r}")
    check_shapes(path, arrays, adapter.method, options, config)
    return adapter


def recorded_prompt_format(path: str | Path) -> dict[str, str | None]:
    """The prompt_format that an adapter was saved with; empty when there was none, as in other projects' adapters.

    Raises:
      InputError: no such file, or damaged.
    """
    path = Path(path)
    if path.suffix == ".pth" or is_folder(path):
        return {}
    metadata, _ = read_adapter_file(path)
    if "prompt_format" not in metadata:
        return {}
    found = Fields(_json(path, metadata, "prompt_format"), path, prefix="its metadata field 'prompt_format': ")
    return {name: found.text(name) if found.has(name) else None for name in found.values}


def prompt_template(
    template: str,
    recorded: dict[str, str | None],
    *,
    adapter: str | None,
    option: str,
    others: tuple[str, ...] = ("chat", "none"),
) -> str:
    """The template that prompts get: the one asked for; of "auto" that of the adapter's training, "none" without one.

    Args:
      recorded: see `recorded_prompt_format`.
      adapter: what the sentence calls it; None where there is none.
      option: where another can be asked for, such as "--template".
      others: those that can be asked for beside "alpaca".

    Raises:
      InputError: "auto", and the adapter's file does not record it, as those of other projects do not.
    """
    if template != "auto":
        return template
    found = recorded.get("template")
    if found is None and adapter is not None:
        raise InputError(
            f"{adapter} does not record how its training data made prompts; name it: {option}=alpaca (as the paper's "
            f"were) or {' or '.join(others)}"
        )
    return found or "none"


class RecordedBase(NamedTuple):
    """What an adapter's file says of its base."""

    config: LlamaConfig
    fingerprint: str
    quantization: str | None = None


def recorded_base(path: str | Path) -> RecordedBase | None:
    """The base that an adapter was saved with; None when there was none, as in other projects' adapters.

    Raises:
      InputError: no such file, or damaged.
    """
    path = Path(path)
    if path.suffix == ".pth" or is_folder(path):
        return None
    metadata, _ = read_adapter_file(path)
    config, fingerprint = _recorded_config(path, metadata), metadata.get("base_fingerprint")
    if not config or not fingerprint:
        return None
    return RecordedBase(config, fingerprint, metadata.get("base_quantization"))


def _json(path: Path, metadata: dict[str, str], name: str) -> dict:
    return parse_object(metadata.get(name, ""), f"{path}: its metadata field {name!r}")


def _recorded_config(path: Path, metadata: dict[str, str]) -> LlamaConfig | None:
    if "base_config" not in metadata:
        return None
    return LlamaConfig.from_fields(
        Fields(_json(path, metadata, "base_config"), path, prefix="its metadata field 'base_config': ")
    )


def _complete_options(path: Path, method: str, config: LlamaConfig | None, options: dict) -> Options:
    try:
        return complete_options(method, config, options)
    except InputError as error:
        fits = " does not fit this base" if config is not None else ""
        raise InputError(f"{path}{fits}: {error}") from error


def _check_base(path: Path, recorded: LlamaConfig | None, fingerprint: str | None, base: FingerprintedBase) -> None:
    theirs, ours = dataclasses.asdict(recorded or base.config), dataclasses.asdict(base.config)
    differences = [f"{name} {theirs[name]} against {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if differences:
        raise InputError(f"{path} was trained on another model than this base: {', '.join(differences)}")
    if fingerprint is None and recorded is None:
        return
    if fingerprint != base.fingerprint:
        raise InputError(
            f"{path} was trained on a base of the same shape with other weights "
            f"(fingerprint {fingerprint and fingerprint[:12]} against {base.fingerprint[:12]})"
        )
