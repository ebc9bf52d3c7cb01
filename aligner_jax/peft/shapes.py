"""Checks the shapes of an adapter's arrays, even if its model is not known."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.methods import METHODS


def check_shapes(
    path: Path | str,
    tensors: Mapping[str, np.ndarray | jax.ShapeDtypeStruct],
    method: str,
    options: Options,
    config: LlamaConfig | None,
) -> None:
    """Refuses arrays that do not match the method and its options.

    Args:
      path: path or name of the adapter, for error messages.
      tensors: arrays by name.
      method: a key of `METHODS`.
      options: complete options of the method.
      config: configuration of the base. If it is None, sizes of the model may have any value, but one value per axis:
        "l" of `tokens_lpd` equals "l" of `gates_ln`.

    Raises:
      InputError: an array is missing, unknown, empty, or of the wrong shape; the message names it.
    """
    known, optional = (METHODS[method].shapes(options, config), set()) if config else _without_model(method, options)
    for name in sorted((tensors.keys() ^ known.keys()) - (optional - tensors.keys())):
        raise InputError(f"{path} {'has no' if name in known else 'has an unknown'} tensor {name!r}")
    sizes: dict[tuple[str, str], int] = {}
    for name, tensor in tensors.items():
        # An axis has one size within a part of a sum: the parts may start at different layers.
        part, axes = name.rpartition("/")[0], name.rpartition("_")[2]
        wanted = known[name]
        if len(tensor.shape) == len(wanted):
            pairs = zip(axes, tensor.shape, wanted, strict=True)
            wanted = tuple(sizes.setdefault((part, axis), size) if most is None else most for axis, size, most in pairs)
        if tensor.shape != wanted or 0 in wanted:
            shape = tuple("any" if size in (None, 0) else size for size in wanted)
            raise InputError(f"{path}: tensor {name!r} has shape {tensor.shape}, but {shape} fits this base")


def _without_model(method: str, options: Options) -> tuple[dict[str, tuple[int | None, ...]], set[str]]:
    """Returns shapes with None for sizes of the model, and the names of arrays that only some models have."""
    first, second, bare = (METHODS[method].shapes(options, config) for config in _models(options))
    shapes = {
        name: tuple(one if one == other else None for one, other in zip(first[name], second[name], strict=True))
        for name in first
    }
    return shapes, first.keys() - bare.keys()


def _models(options: Options) -> tuple[LlamaConfig, LlamaConfig, LlamaConfig]:
    """Returns two models that differ in every size, and one without the optional parameters."""
    least = options.least_layers
    return (
        LlamaConfig(11, 24, 13, least + 1, 6, 3, 4, qkv_bias=True, o_bias=True),
        LlamaConfig(17, 60, 19, least + 2, 10, 5, 6, qkv_bias=True, o_bias=True),
        LlamaConfig(11, 24, 13, least + 1, 6, 3, 4, tied_embeddings=True),
    )
