"""The file an adapter ships as: one safetensors file that says what it is and which base it belongs to.

Adapters of other projects are read by the same function, and have no such file.
"""

import dataclasses
import json
import struct
from pathlib import Path
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import parse_object
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft import METHODS, Adapter, Options, complete_options
from aligner_jax.peft.hf_peft import load_peft
from aligner_jax.peft.released import load_released
from aligner_jax.runtime.files import reason, write_atomically

FORMAT_VERSION = 1


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

    The metadata are format_version, method, options (JSON), base_config (JSON) and base_fingerprint; the last two are
    left out without a base, and the file is then accepted beside any base it fits. Over a quantized base there is
    base_quantization too, for the reader: the fingerprint is that of the base before, and fits it either way.

    Args:
      adapter: of any method and dtype.
      path: ends in .safetensors by custom.
      base: the base it was trained on.
      prompt_format: how its training data made prompts ({"template": "chat", "system": ""}), so that whoever generates
        with it can do the same; `recorded_prompt_format` reads it back.

    Raises:
      InputError: the file cannot be written (the sentence names it and says why).
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
    write_atomically(Path(path), _with_sorted_header(safetensors.numpy.save(tensors, metadata)))


def load_adapter(path: str | Path, base: FingerprintedBase | None = None) -> Adapter:
    """Reads an adapter that `save_adapter` wrote, or one of another project.

    These are .pth files of the paper's authors' Aligners and of lit-llama's LLaMA-Adapters (see `released`), and the
    folders of Hugging Face PEFT (see `hf_peft`).

    Args:
      path: the file or folder. Only our own names its base, so only shapes of the others are checked against one.
      base: the base it is for; without one neither fingerprint nor shapes are checked against a model.

    Raises:
      InputError: no such file, not an adapter, damaged, or trained on another base.
    """
    path = Path(path)
    if path.is_dir():
        return load_peft(path, base.config if base is not None else None)
    if path.suffix == ".pth":
        return _load_released(path, base)
    metadata, tensors = _read(path)
    method = metadata.get("method")
    if metadata.get("format") != "aligner_jax" or method is None:
        raise InputError(
            f"{path} is a safetensors file, but not an adapter of this project: its metadata name no method"
        )
    version = metadata.get("format_version", "")
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        raise InputError(f"{path} has format version {version!r}, and this release reads up to {FORMAT_VERSION}")
    if method not in METHODS:
        raise InputError(f"{path} holds an adapter of method {method!r}, which is not one of {', '.join(METHODS)}")
    if base is not None:
        _check_base(path, metadata, base)
    config = base.config if base is not None else _recorded_config(path, metadata)
    options = _json(path, metadata, "options")
    # A file without a base's configuration may come from before an option existed, too.
    full = (
        _complete_options(path, method, config, options)
        if config
        else Options.of(**{**METHODS[method].DEFAULTS, **options})
    )
    _check_tensors(path, tensors, METHODS[method].shapes(full, config) if config else None)
    return Adapter({name: jnp.asarray(x) for name, x in tensors.items()}, method=method, options=full)


def _load_released(path: Path, base: FingerprintedBase | None) -> Adapter:
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is not a file")
    adapter, shapes = load_released(path), None
    if base is not None:
        options = _complete_options(path, adapter.method, base.config, adapter.options.as_dict())
        shapes = METHODS[adapter.method].shapes(options, base.config)
    _check_tensors(path, {name: np.asarray(leaf) for name, leaf in adapter.trainable.items()}, shapes)
    return adapter


def recorded_prompt_format(path: str | Path) -> dict[str, str | None]:
    """The prompt_format that an adapter was saved with; empty when there was none, as in other projects' adapters.

    Raises:
      InputError: no such file, or damaged.
    """
    path = Path(path)
    if path.suffix == ".pth" or path.is_dir():
        return {}
    metadata, _ = _read(path)
    return _json(path, metadata, "prompt_format") if "prompt_format" in metadata else {}


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
    if path.suffix == ".pth" or path.is_dir():
        return None
    metadata, _ = _read(path)
    config, fingerprint = _recorded_config(path, metadata), metadata.get("base_fingerprint")
    if not config or not fingerprint:
        return None
    return RecordedBase(config, fingerprint, metadata.get("base_quantization"))


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is not a file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error


def _json(path: Path, metadata: dict[str, str], name: str) -> dict:
    return parse_object(metadata.get(name, ""), f"{path}: its metadata field {name!r}")


def _recorded_config(path: Path, metadata: dict[str, str]) -> LlamaConfig | None:
    if "base_config" not in metadata:
        return None
    return LlamaConfig.from_fields(
        Fields(_json(path, metadata, "base_config"), path, prefix="its metadata field 'base_config': ")
    )


def _complete_options(path: Path, method: str, config: LlamaConfig, options: dict) -> Options:
    try:
        return complete_options(method, config, options)
    except InputError as error:
        raise InputError(f"{path} does not fit this base: {error}") from error


def _check_base(path: Path, metadata: dict[str, str], base: FingerprintedBase) -> None:
    recorded = _recorded_config(path, metadata)
    theirs, ours = dataclasses.asdict(recorded or base.config), dataclasses.asdict(base.config)
    differences = [f"{name} {theirs[name]} against {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if differences:
        raise InputError(f"{path} was trained on another model than this base: {', '.join(differences)}")
    theirs, ours = metadata.get("base_fingerprint"), base.fingerprint
    if theirs is None and recorded is None:
        return
    if theirs != ours:
        raise InputError(
            f"{path} was trained on a base of the same shape with other weights "
            f"(fingerprint {theirs and theirs[:12]} against {ours[:12]})"
        )


def _check_tensors(path: Path, tensors: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]] | None) -> None:
    if shapes is not None:
        for name in sorted(tensors.keys() ^ shapes.keys()):
            raise InputError(f"{path} {'has no' if name in shapes else 'has an unknown'} tensor {name!r}")
    for name, tensor in tensors.items():
        if shapes is not None and tensor.shape != shapes[name]:
            raise InputError(f"{path}: tensor {name!r} has shape {tensor.shape}, but {shapes[name]} fits this base")
        if not np.isfinite(tensor.astype(np.float32)).all():
            raise InputError(f"{path}: tensor {name!r} holds numbers that are not finite")


def _with_sorted_header(data: bytes) -> bytes:
    # safetensors writes the metadata in a random order; sorted, equal adapters are equal files.
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return data[:8] + text.ljust(length) + data[8 + length :]
