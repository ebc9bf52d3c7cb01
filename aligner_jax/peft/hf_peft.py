"""Reads and writes Hugging Face PEFT folders: adapter_config.json and adapter_model.safetensors."""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file, is_folder
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import METHODS, Adapter, Options, bias, complete_options, lora
from aligner_jax.peft.aligner import AlignerOptions
from aligner_jax.peft.bias import BiasOptions
from aligner_jax.peft.hf_peft_config import FILE, LAYER, MODULES, PeftConfig, adaption_prompt_config, lora_config
from aligner_jax.peft.llama_adapter import LlamaAdapterOptions
from aligner_jax.peft.lora import LoraOptions
from aligner_jax.peft.sum import sum_of
from aligner_jax.runtime.files import write_folder_atomically
from aligner_jax.weights.hf import FORMAT
from aligner_jax.weights.hf_config import hf_config
from aligner_jax.weights.safetensors_header import safetensors_sources
from aligner_jax.weights.torch_file import read_torch_tensors

_TENSORS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model." + LAYER
_AT = "self_attn.adaption_"
_PROMPT = re.compile(re.escape(_PREFIX + _AT).replace(r"\{l\}", "(0|[1-9][0-9]{0,5})") + "prompt")
_WRITABLE = "PEFT has lora, and llama_adapter (or an aligner) with one gate a layer and no more"


class _Place(NamedTuple):
    """A tensor of the folder: its name, the trained array and the index in it that it maps to, and its shape."""

    name: str
    leaf: str
    part: int
    shape: tuple[int, ...]


def load_peft(folder: str | Path, config: LlamaConfig | None = None) -> Adapter:
    """Loads a PEFT adapter in float32; its logits equal PEFT's.

    LoRA becomes `lora`: x ↦ W x + s · B A x with s = lora_alpha / r, or lora_alpha / √r with use_rslora. One whose A
    and B are zero and whose B has a bias, as `aligner_jax.export` writes it, becomes `bias`, or a sum of two.
    AdaptionPrompt becomes `llama_adapter` with one gate per layer and no tanh, in the last adapter_layers layers.
    Source: PEFT 0.21, tuners/lora/layer.py and tuners/adaption_prompt/layer.py.

    Args:
      folder: folder with adapter_config.json, and adapter_model.safetensors or adapter_model.bin. From the latter, a
        pickle, only tensors are built.
      config: configuration of the base. If it is None, the last layer of an AdaptionPrompt is taken to be the model's
        last, and LoRA reads the configuration in the folder that base_model_name_or_path names.

    Raises:
      InputError: a file is missing or damaged, a field of the configuration is not supported, or a tensor is unknown,
        missing, not finite, or of the wrong shape. The message names the field or tensor.
    """
    folder = Path(folder)
    found = PeftConfig(folder)
    if found.method == "lora":
        return _load_lora(folder, found, config or _config_of_base(found), _read_tensors(folder))
    if found.method == "bias":
        return _load_biases(folder, found, config or _config_of_base(found), _read_tensors(folder))
    return _load_adaption_prompt(folder, found, config, _read_tensors(folder))


def write_peft(adapter: Adapter, folder: str | Path, *, config: LlamaConfig, base_name: str | None = None) -> None:
    """Writes an adapter as a PEFT folder, atomically and with unchanged dtypes.

    PEFT has no Aligner. An `aligner` with gates "layer" or "global" (and tokens of either width) is equal to an
    AdaptionPrompt with the same tokens in every layer, and is written as one. For gates with a tanh, the value of the
    tanh is written.

    Args:
      adapter: a `lora`, or a `llama_adapter` or `aligner` with one gate per layer.
      folder: a new or empty folder.
      config: configuration of the base.
      base_name: value of base_model_name_or_path, from which PEFT's AutoPeftModel loads the base.

    Raises:
      InputError: PEFT has no equivalent of the adapter, or the folder cannot be written.
    """
    write_folder_atomically(folder, peft_files(adapter, config=config, base_name=base_name))


def peft_files(adapter: Adapter, *, config: LlamaConfig, base_name: str | None = None) -> dict[str, bytes]:
    """Returns the contents, by name, of the files that `write_peft` writes. Raises InputError as it does."""
    adapter.options.check(config)
    fitting = METHODS[adapter.method].shapes(adapter.options, config)
    for name, leaf in adapter.trainable.items():
        if leaf.shape != fitting.get(name):
            raise InputError(f"{name} of this adapter has shape {leaf.shape}, but {fitting.get(name)} fits this base")
    if isinstance(adapter.options, LoraOptions):
        leaves, places = adapter.trainable, _lora_places(adapter.options, config)
        text = lora_config(adapter.options.as_dict(), base_name)
    else:
        leaves = _as_adaption_prompt(adapter, config)
        num_layers, num_tokens, _ = leaves["tokens_lpd"].shape
        places = _adaption_prompt_places(config.num_layers, num_layers, num_tokens, config.d_model)
        text = adaption_prompt_config(num_tokens, num_layers, base_name)
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    tensors = {place.name: np.ascontiguousarray(_outward(arrays[place.leaf][place.part], place)) for place in places}
    return packed(tensors, text)


def packed(tensors: dict[str, np.ndarray], config_text: str) -> dict[str, bytes]:
    """Returns the contents, by name, of a PEFT folder with these tensors and this adapter_config.json."""
    # transformers requires these metadata in files for torch.
    return {_TENSORS: safetensors.numpy.save(tensors, {"format": "pt"}), FILE: config_text.encode()}


def tensor_prefix(layer: int, target: str) -> str:
    """Returns the name prefix of the tensors of a layer's projection, such as target "o"."""
    return f"{_PREFIX.format(l=layer)}{MODULES[target]}"


def _load_lora(folder: Path, found: PeftConfig, config: LlamaConfig, tensors: dict[str, np.ndarray]) -> Adapter:
    # Every layer has at least two tensors, so an impossible num_layers is refused before any loop over layers.
    if config.num_layers > len(tensors):
        raise InputError(f"{folder} has {len(tensors)} tensors, too few for the {config.num_layers} layers of its base")
    given = found.lora_options(config.num_layers)
    try:
        options = cast(LoraOptions, complete_options("lora", config, given))
    except InputError as error:
        raise InputError(f"{folder / FILE}: {error}") from None
    places = _accounted(folder, tensors, _lora_places(options, config))
    arrays = {name: np.empty(shape, np.float32) for name, shape in lora.shapes(options, config).items()}
    for place in places:
        part = arrays[place.leaf][place.part]
        part[...] = tensors[place.name].T.reshape(part.shape)
    return _adapter(arrays, "lora", options)


def _load_biases(folder: Path, found: PeftConfig, config: LlamaConfig, tensors: dict[str, np.ndarray]) -> Adapter:
    """Returns the biases of a LoRA whose matrices are zero; a sum if two projections have one."""
    targets, start = found.biases(config.num_layers)
    each = [BiasOptions(target=target, start_layer=start) for target in targets]
    matrices = list(_lora_places(LoraOptions(rank=1, targets=tuple(targets)), config, start))
    biases = [place for options in each for place in _bias_places(options, config)]
    _accounted(folder, tensors, iter([*matrices, *biases]))
    for place in matrices:
        if tensors[place.name].any():
            raise InputError(
                f"{folder}: tensor {place.name!r} is not zero, and biases of LoRA's factors are supported beside "
                f"matrices of zero only"
            )
    shapes = [bias.shapes(options, config) for options in each]
    arrays = {leaf: np.empty(shape, np.float32) for found in shapes for leaf, shape in found.items()}
    for place in biases:
        part = arrays[place.leaf][place.part]
        part[...] = tensors[place.name].reshape(part.shape)
    parts = [
        _adapter({leaf: arrays[leaf] for leaf in found}, "bias", options)
        for options, found in zip(each, shapes, strict=True)
    ]
    return parts[0] if len(parts) == 1 else sum_of(parts)


def _load_adaption_prompt(
    folder: Path, found: PeftConfig, config: LlamaConfig | None, tensors: dict[str, np.ndarray]
) -> Adapter:
    found.check_attention()
    num_tokens, num_adapted = found.fields.integer("adapter_len"), found.fields.integer("adapter_layers")
    if config is None:
        num_layers, d_model = _seen_sizes(folder, tensors)
    else:
        num_layers, d_model = config.num_layers, config.d_model
        _check_model(config, str(folder / FILE))
    if num_adapted > num_layers:
        found.refuse("adapter_layers", f"the model has {num_layers} layers")
    expected = _adaption_prompt_places(num_layers, num_adapted, num_tokens, d_model)
    places = _accounted(folder, tensors, expected)
    arrays = {
        "tokens_lpd": np.empty((num_adapted, num_tokens, d_model), np.float32),
        "gates_ln": np.empty((num_adapted, 1), np.float32),
    }
    for place in places:
        arrays[place.leaf][place.part] = tensors[place.name].reshape(arrays[place.leaf].shape[1:])
    options = LlamaAdapterOptions(num_tokens=num_tokens, start_layer=num_layers - num_adapted, gates="layer")
    return _adapter(arrays, "llama_adapter", options)


def _as_adaption_prompt(adapter: Adapter, config: LlamaConfig) -> dict[str, jnp.ndarray]:
    """Returns tokens_lpd and gates_ln [l, 1] of a prefix with one gate per layer."""
    options = adapter.options
    if not isinstance(options, AlignerOptions | LlamaAdapterOptions):
        raise InputError(f"an adapter of method {adapter.method!r} cannot be written for PEFT: {_WRITABLE}")
    gates_ln = adapter.trainable.get("gates_ln")
    if gates_ln is None or gates_ln.shape[1] != 1:
        count = options.num_tokens * config.num_heads if gates_ln is None else gates_ln.shape[1]
        raise InputError(
            f"this {adapter.method} has {count} gates a layer (gates={options.gates!r}) "
            f"and cannot be written for PEFT: {_WRITABLE}"
        )
    _check_model(config, "this adapter cannot be written for PEFT")
    num_layers = options.num_adapted(config)
    if isinstance(options, AlignerOptions):
        tokens_pd = adapter.trainable["tokens_pd"]
        tokens_pd = jnp.tile(tokens_pd, (1, config.d_model // tokens_pd.shape[1]))
        tokens_lpd = jnp.broadcast_to(tokens_pd, (num_layers, *tokens_pd.shape))
    else:
        tokens_lpd = adapter.trainable["tokens_lpd"]
    return {"tokens_lpd": tokens_lpd, "gates_ln": jnp.broadcast_to(options.weights(gates_ln), (num_layers, 1))}


def _check_model(config: LlamaConfig, where: str) -> None:
    """Refuses models for which PEFT's AdaptionPrompt does not compute a prefix with a softmax of its own."""
    if config.o_bias:
        raise InputError(
            f"{where}: the model has a bias in o_proj, which PEFT's AdaptionPrompt adds a second time in adapted layers"
        )
    if config.d_model != config.num_heads * config.head_dim:
        raise InputError(
            f"{where}: the model's width {config.d_model} is not its {config.num_heads} heads times {config.head_dim}, "
            f"and PEFT's AdaptionPrompt does not run on such a model"
        )


def _bias_places(options: BiasOptions, config: LlamaConfig) -> Iterator[_Place]:
    ((leaf, shape),) = bias.shapes(options, config).items()
    for index, layer in enumerate(options.adapted(config)):
        yield _Place(f"{tensor_prefix(layer, options.target)}.lora_B.bias", leaf, index, (math.prod(shape[1:]),))


def _lora_places(options: LoraOptions, config: LlamaConfig, start: int = 0) -> Iterator[_Place]:
    shapes = lora.shapes(options, config)
    for target in options.targets:
        for side in "AB":
            leaf = next(name for name in shapes if name.startswith(f"{side.lower()}_{target}_"))
            # PEFT's A is [r, in], its B is [out, r].
            size = math.prod(shapes[leaf][1:]) // options.rank
            shape = (options.rank, size) if side == "A" else (size, options.rank)
            for layer in range(start, config.num_layers):
                yield _Place(f"{tensor_prefix(layer, target)}.lora_{side}.weight", leaf, layer, shape)


def _adaption_prompt_places(num_layers: int, num_adapted: int, num_tokens: int, d_model: int) -> Iterator[_Place]:
    for index in range(num_adapted):
        prefix = _PREFIX.format(l=num_layers - num_adapted + index) + _AT
        yield _Place(prefix + "prompt", "tokens_lpd", index, (1, num_tokens, d_model))
        yield _Place(prefix + "gate", "gates_ln", index, (1,))


def _outward(part: np.ndarray, place: _Place) -> np.ndarray:
    """Reshapes a part of a trained array to PEFT's shape; LoRA's matrices are transposed."""
    return part.reshape(place.shape[::-1]).T if len(place.shape) == 2 else part.reshape(place.shape)


def _accounted(folder: Path, tensors: dict[str, np.ndarray], places: Iterator[_Place]) -> list[_Place]:
    """Returns the places as a list, after checking that the folder has exactly their tensors."""
    found = {}
    for place in places:
        name = place.name
        if name not in tensors:
            raise InputError(f"{folder} has no tensor {name!r}, although its {FILE} asks for it")
        if tensors[name].shape != place.shape:
            raise InputError(f"{folder}: tensor {name!r} has shape {tensors[name].shape}, but {place.shape} fits here")
        if not np.isfinite(tensors[name]).all():
            raise InputError(f"{folder}: tensor {name!r} holds numbers that are not finite")
        found[name] = place
    for name in tensors:
        if name not in found:
            raise InputError(
                f"{folder} has an unknown tensor {name!r}: its {FILE} does not ask for it, or no LLaMA has it"
            )
    return list(found.values())


def _seen_sizes(folder: Path, tensors: dict[str, np.ndarray]) -> tuple[int, int]:
    """Infers the number of layers and d_model of the base from an AdaptionPrompt's tensors."""
    found = {int(match[1]): tensors[name] for name in tensors if (match := _PROMPT.fullmatch(name))}
    if not found or found[max(found)].ndim != 3:
        raise InputError(f"{folder} has no tensor of an AdaptionPrompt, such as {_PREFIX.format(l=0)}{_AT}prompt")
    return max(found) + 1, found[max(found)].shape[2]


def _config_of_base(found: PeftConfig) -> LlamaConfig:
    name = found.fields.get("base_model_name_or_path")
    if not isinstance(name, str) or not name or not is_folder(name):
        found.refuse("base_model_name_or_path", "that is no folder here, so the base has to be given beside this LoRA")
    return hf_config(Path(name))


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    if is_file(folder / _TENSORS):
        tensors = {}
        for source in safetensors_sources(folder / _TENSORS):
            FORMAT.check_encoding(source)
            # Tensors are decoded as one row, since scalars have no axis to read along.
            row = FORMAT.decode(dataclasses.replace(source, shape=(1, -1)))
            tensors[source.name] = row.reshape(source.shape).astype(np.float32)
        return tensors
    if is_file(folder / _PICKLE):
        # A float64 beyond float32 becomes infinite, and `_accounted` refuses it.
        with np.errstate(over="ignore"):
            return {name: tensor.astype(np.float32) for name, tensor in read_torch_tensors(folder / _PICKLE).items()}
    raise InputError(f"{folder} has neither {_TENSORS} nor {_PICKLE}")


def _adapter(arrays: dict[str, np.ndarray], method: str, options: Options) -> Adapter:
    return Adapter({name: jnp.asarray(x) for name, x in arrays.items()}, method=method, options=options)
