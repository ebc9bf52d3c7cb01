"""Loads the frozen base (parameters, configuration and tokenizer) from any supported form of its files."""

import dataclasses
import os
from pathlib import Path
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, is_file, is_folder
from aligner_jax.model.config import PRESETS, LlamaConfig, llama_config
from aligner_jax.model.params import Params, described_leaves
from aligner_jax.model.quantized import Quantization
from aligner_jax.runtime.config import BaseConfig
from aligner_jax.runtime.waiting import reading
from aligner_jax.weights.fingerprint import LeafSums, digest, fingerprint, leaf_sums
from aligner_jax.weights.finite import check_fits_float16
from aligner_jax.weights.form import Form
from aligner_jax.weights.gguf import GGUF
from aligner_jax.weights.hf import HF
from aligner_jax.weights.hub import download, is_hub_name
from aligner_jax.weights.leaves import Finish, Shardings, check_dtype
from aligner_jax.weights.meta import META
from aligner_jax.weights.orbax import ORBAX
from aligner_jax.weights.quantize import quantizer
from aligner_jax.weights.source import Checkpoint

FORMS: tuple[Form, ...] = (HF, GGUF, META, ORBAX)
"""The supported forms of a base's files, in the order in which they are tried."""
_ANY_FORM = f"{', '.join(form.description for form in FORMS)}, or the hub name of a model"
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]


class Base(flax.struct.PyTreeNode):
    """A base model: a pytree whose leaves are the parameters.

    Attributes:
      tokenizer: None if the checkpoint has none.
      quantization: quantization of the projections; None if they have the dtype of the other parameters.
      loaded_fingerprint: fingerprint of the weights before they were quantized or rounded to float16; None if they
        were neither.
    """

    params: Params
    config: LlamaConfig = flax.struct.field(pytree_node=False)
    tokenizer: Tokenizer | None = flax.struct.field(pytree_node=False, default=None)
    quantization: Quantization | None = flax.struct.field(pytree_node=False, default=None)
    loaded_fingerprint: str | None = flax.struct.field(pytree_node=False, default=None)

    def __post_init__(self) -> None:
        # The tokenizer must refuse token ids that the embedding lacks. One that already does stays the same object,
        # because programs are compiled for it.
        if self.tokenizer is not None and self.tokenizer.num_embeddings != self.config.vocab_size:
            known = dataclasses.replace(self.tokenizer, num_embeddings=self.config.vocab_size)
            object.__setattr__(self, "tokenizer", known)

    def __repr__(self) -> str:
        name = next((name for name, config in PRESETS.items() if config == self.config), "of no published shape")
        tokenizer = "without a tokenizer" if self.tokenizer is None else "with its tokenizer"
        return f"Base({name}, {described_leaves(self.params)}, {tokenizer})"

    @property
    def fingerprint(self) -> str:
        """Fingerprint that adapters record; see `weights.fingerprint`. Neither quantization nor the dtype changes it.

        Every access reads all weights, unless they are quantized or float16.
        """
        return self.loaded_fingerprint or fingerprint(self.config, self.params)

    @property
    def held_as(self) -> str:
        """Dtype and quantization of the parameters, such as "float32" or "bfloat16 int4 in groups of 32"."""
        return f"{self.params.embed_vd.dtype} {self.quantization or ''}".strip()

    @property
    def identity(self) -> str:
        """Key of cached results: fingerprint and `held_as`. Two bases with the same identity compute the same."""
        return f"{self.fingerprint} {self.held_as}"


def load_base(
    path: str | Path,
    dtype: str = "float32",
    *,
    quantization: str | None = None,
    group_size: int = 32,
    shardings: Shardings = None,
    finish: Finish = None,
) -> Base:
    """Loads the base model at `path`. Its files are never changed.

    Args:
      path: a Hugging Face folder, a .gguf file, a folder in Meta's form, or an Orbax folder that `aligner_jax.convert`
        wrote. If `huggingface_hub` is installed and reaches a hub, also the name of a model there ("org/name").
      dtype: dtype of the parameters and of the computation, "float32", "bfloat16" or "float16". For "float16" each leaf
        is loaded in float32, since adapters record a fingerprint of the weights before rounding.
      quantization: "int8" or "int4" quantizes the projections of the layers; see `model.quantized`. At most one
        projection is unquantized at a time. None or "none" keeps all of them in `dtype`.
      group_size: number of weights in a group of "int4".
      shardings: a `Params` of `jax.sharding.NamedSharding`, or a function from the model's `LlamaConfig` to one, such
        as `functools.partial(param_shardings, mesh=mesh)`. Every process then reads only what its own devices hold, and
        no parameter is ever whole on a host. None puts all parameters on the default device.
      finish: called with the name ("q_ldnh") and array of every leaf, largest first; its result replaces the array.
        If the base is quantized, it is called with the quantized leaves.

    Raises:
      InputError: there is no model at `path`, it cannot be read, its weights are too large for dtype, or dtype,
        quantization or group_size is not supported.
    """
    check_dtype(dtype)
    chosen = None if quantization in (None, "none") else Quantization(cast(Any, quantization), group_size)
    local = locate(path)
    form = form_of(local)
    # The tokenizer comes before the weights, which take longer, so that a damaged vocabulary is reported at once.
    tokenizer, load = form.begin(local) if form.begin is not None else (form.tokenizer(local), form.load)
    with reading(f"reading {path}", bytes_of(local)):
        if chosen is None and dtype != "float16":
            config, params = load(local, dtype, shardings=shardings, finish=finish)
            return Base(params, config, tokenizer)
        leaves = _ConvertedLeaves(local, chosen, dtype, shardings, finish)
        read_as = "float32" if dtype == "float16" else dtype
        config, params = load(local, read_as, shardings=leaves.begin, finish=leaves.finish)
        return Base(params, config, tokenizer, chosen, digest(config, leaves.sums))


def bytes_of(local: Path) -> int:
    """Returns the bytes of a file, or of the weights in a folder; 0 if they cannot be told."""
    files = [local] if is_file(local) else [*local.glob("*.safetensors")] or [*local.glob("*.pth")]
    try:
        return sum(file.stat().st_size for file in files)
    except OSError:
        return 0


class _ConvertedLeaves:
    """Quantizes leaves or rounds them to float16 as they are loaded, and keeps their sums for the fingerprint."""

    def __init__(
        self, path: Path, quantization: Quantization | None, dtype: str, shardings: Shardings, finish: Finish
    ) -> None:
        self.sums: dict[str, LeafSums] = {}
        self._base, self._quantization, self._dtype = f"the base at {path}", quantization, dtype
        self._shardings, self._finish = shardings, finish

    def begin(self, config: LlamaConfig) -> Params | None:
        """Returns the shardings; called before the first leaf is finished."""
        self._quantize = None
        if self._quantization is not None:
            self._quantize = quantizer(config, self._quantization, base=self._base)
        return self._shardings(config) if callable(self._shardings) else self._shardings

    def finish(self, name: str, leaf: jax.Array) -> Any:
        self.sums[name] = leaf_sums(leaf)
        if self._dtype == "float16":
            check_fits_float16(leaf, f"leaf {name} of {self._base}")
        held: Any = leaf if self._quantize is None else self._quantize(name, leaf)
        if held is leaf and self._dtype == "float16":
            held = jax.block_until_ready(leaf.astype(jnp.float16))
            leaf.delete()
        return held if self._finish is None else self._finish(name, held)


def unused_model(config: BaseConfig, model: LlamaConfig) -> str:
    """Returns a sentence if the weights have another architecture than `config.model` names, else "".

    The weights take precedence over `config.model`, so that a config can be used with any base.

    Raises:
      InputError: `config.model` names no published architecture.
    """
    if config.model is None:
        return ""
    named = llama_config(config.model)
    for field in dataclasses.fields(named):
        wanted, found = getattr(named, field.name), getattr(model, field.name)
        # The declared context length does not change the computation.
        if wanted != found and field.name != "context_length":
            return (
                f"config.base.model {config.model} is not used: its {field.name} is {wanted}, and that of the weights "
                f"at {config.path} is {found}"
            )
    return ""


def locate(path: str | Path) -> Path:
    """Returns the local file or folder of a base model: `path` itself, or a download of the hub's model of that name.

    Raises:
      InputError: nothing is at `path` or on a hub, or `path` is not a valid path or may not be entered.
    """
    local = _expanded(path)
    return local if exists(local) else _from_hub(str(path))


def form_of(local: Path) -> Form:
    """Returns the form of the base at `local`.

    Raises:
      InputError: there is no base at `local`, or its form is not supported.
    """
    if not is_file(local) and not is_folder(local):
        raise InputError(f"{local} is a device or a pipe, not a base model; give {_ANY_FORM}")
    for form in FORMS:
        if form.detect(local):
            return form
    for form in FORMS:
        if (hint := form.hint(local)) is not None:
            raise InputError(hint)
    problem = "is not a .gguf file" if is_file(local) else "has no config.json"
    raise InputError(f"{local} {problem}; give {_ANY_FORM}")


def open_base(local: Path) -> Checkpoint:
    """Opens the files of the base at `local` without loading its weights.

    Raises:
      InputError: see `load_base`; or the base is an Orbax folder, whose arrays are leaves of `Params` already.
    """
    form = form_of(local)
    if form.open is None:
        raise InputError(f"{local} is a base in Orbax's form already")
    return form.open(local)


def base_config(path: str | Path) -> LlamaConfig:
    """Returns the configuration of the base model at a local `path`, without loading its weights.

    Raises:
      InputError: there is no model at `path`, or it cannot be read.
    """
    local = _expanded(path)
    if not exists(local):
        raise InputError(f"there is no base model at {path}")
    return form_of(local).config(local)


def _expanded(path: str | Path) -> Path:
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise InputError(f"the path of the base model is of type {type(path).__name__}; give {_ANY_FORM}")
    if not str(path).strip():
        raise InputError(f"the path of the base model is empty; give {_ANY_FORM}")
    try:
        return Path(path).expanduser()
    except RuntimeError:  # There is no home folder, or no such user.
        return Path(path)


def _from_hub(name: str) -> Path:
    if not is_hub_name(name):
        raise InputError(f"there is no base model at {name}; give {_ANY_FORM}")
    return download(name, "base model", _HUB_FILES)
