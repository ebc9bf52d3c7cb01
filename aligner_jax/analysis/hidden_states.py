"""Maps hidden states at the prompts' ends to two dimensions, with and without adapters, and measures their moves."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from aligner_jax.analysis.shifts import Seen
from aligner_jax.errors import InputError

_LEAST = 4
"""Minimum number of prompts for two dimensions and for t-SNE's neighbours."""


@dataclasses.dataclass(frozen=True)
class Map:
    """Hidden states at one depth in two dimensions, of m models (the base first) and b prompts.

    Attributes:
      depth: name of the depth, in words.
      pca_mb2: principal components of all states together.
      explained: shares of the variance that the two components explain.
      tsne_mb2: t-SNE of all states together; only neighbourhoods have a meaning.
    """

    depth: str
    pca_mb2: Float[np.ndarray, "m b 2"]
    explained: tuple[float, float]
    tsne_mb2: Float[np.ndarray, "m b 2"]


def maps(models: Sequence[Seen], *, seed: int = 0) -> list[Map]:
    """Returns maps at a third and two thirds of the depth, and after the final norm.

    Raises:
      InputError: there are fewer than four prompts.
    """
    num_layers, count = models[0].last_lbd.shape[:2]
    if count < _LEAST:
        raise InputError(f"there are {count} prompts, and maps of hidden states need at least {_LEAST}")
    layers = sorted({max(num_layers * third // 3 - 1, 0) for third in (1, 2)})
    at = {f"after layer {layer}": np.stack([seen.last_lbd[layer] for seen in models]) for layer in layers}
    at["after the final norm"] = np.stack([seen.final_bd for seen in models])
    return [_map(depth, states_mbd, seed) for depth, states_mbd in at.items()]


def _map(depth: str, states_mbd: np.ndarray, seed: int) -> Map:
    # Imported here since scikit-learn takes a second, and most analyses draw no map.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    shape = *states_mbd.shape[:2], 2
    states = states_mbd.reshape(-1, states_mbd.shape[-1]).astype(np.float64)
    # The package declares no types, and a type checker takes long to infer them.
    pca = cast(Any, PCA)(2, random_state=seed)
    pca_mb2 = pca.fit_transform(states).reshape(shape)
    first, second = map(float, pca.explained_variance_ratio_)
    perplexity = min(30.0, (len(states) - 1) / 3)
    tsne = cast(Any, TSNE)(2, perplexity=perplexity, init="pca", random_state=seed)
    return Map(depth, pca_mb2, (first, second), tsne.fit_transform(states).reshape(shape))


@dataclasses.dataclass(frozen=True)
class Displacement:
    """Moves of the hidden states at the prompts' ends that an adapter causes, by layer.

    Attributes:
      relative_l: mean norm of the moves, divided by the mean distance of the base's states from their mean.
      common_l: norm of the mean move, divided by the mean norm: 1 if all prompts move alike; NaN if none moves.
    """

    relative_l: Float[np.ndarray, " l"]
    common_l: Float[np.ndarray, " l"]


def displacement(base: Seen, adapted: Seen) -> Displacement:
    """Returns the moves of the residual stream from the base to an adapted model."""
    base_lbd = base.last_lbd.astype(np.float64)
    moves_lbd = adapted.last_lbd - base_lbd
    lengths_l = np.linalg.norm(moves_lbd, axis=-1).mean(axis=1)
    spread_l = np.linalg.norm(base_lbd - base_lbd.mean(axis=1, keepdims=True), axis=-1).mean(axis=1)
    together_l = np.linalg.norm(moves_lbd.mean(axis=1), axis=-1)
    nothing_l = np.full_like(lengths_l, np.nan)
    return Displacement(
        np.divide(lengths_l, spread_l, out=nothing_l.copy(), where=spread_l > 0),
        np.divide(together_l, lengths_l, out=nothing_l.copy(), where=lengths_l > 0),
    )
