"""How many directions an adapter's tokens (or its low-rank updates) really use."""

import numpy as np
from jaxtyping import Float

from aligner_jax.analysis.entries import factors
from aligner_jax.peft import Adapter


def entropy_rank(sigma_mp: Float[np.ndarray, "*m p"]) -> Float[np.ndarray, "*m"]:
    """Effective rank by entropy: exp(−Σ qᵢ ln qᵢ) with qᵢ = σᵢ / Σ σ (Roy and Vetterli, EUSIPCO 2007).

    From 1 (one direction) to p (all alike); 0 of a matrix of zeros.
    """
    total = sigma_mp.sum(axis=-1, keepdims=True)
    q = np.divide(sigma_mp, total, out=np.zeros_like(sigma_mp), where=total > 0)
    logs = np.log(q, out=np.zeros_like(q), where=q > 0)
    return np.where(total[..., 0] > 0, np.exp(-np.sum(q * logs, axis=-1)), 0.0)


def participation_ratio(sigma_mp: Float[np.ndarray, "*m p"]) -> Float[np.ndarray, "*m"]:
    """(Σ σᵢ²)² / Σ σᵢ⁴: as `entropy_rank`, but of squares, so that small directions count for less."""
    squares = np.square(sigma_mp)
    top, bottom = np.square(squares.sum(axis=-1)), np.square(squares).sum(axis=-1)
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def spectra(adapter: Adapter) -> dict[str, Float[np.ndarray, "m p"]]:
    """Singular values, largest first, of each matrix [p, width] of an adapter.

    Tokens shared by all layers are one matrix; LLaMA-Adapter's tokens, and keys and values of prefix tuning, are one a
    layer. Of LoRA they are those of every layer's update A B, by target. Other methods have no such matrices.
    """
    found = {}
    for name, leaf in adapter.trainable.items():
        if name == "tokens_pd":
            found["tokens"] = _singular(np.asarray(leaf)[None])
        elif name in ("tokens_lpd", "keys_lpkh", "values_lpkh"):
            x = np.asarray(leaf)
            found[name.partition("_")[0]] = _singular(x.reshape(*x.shape[:2], -1))
    for target, (a_lir, b_lro) in factors(adapter).items():
        # The singular values of A B are those of the small product of both triangles.
        ra, rb = np.linalg.qr(a_lir).R, np.linalg.qr(b_lro.swapaxes(1, 2)).R
        found[f"update of {target}"] = _singular(ra @ rb.swapaxes(1, 2))
    return found


def fresh_spectrum(p: int, width: int) -> Float[np.ndarray, " p"]:
    """Of tokens as an Aligner begins with them, N(0, 1): what training has not changed looks like this."""
    return _singular(np.random.default_rng(0).standard_normal((1, p, width)))[0]


def _singular(x_mpd: np.ndarray) -> np.ndarray:
    return np.linalg.svd(x_mpd.astype(np.float64), compute_uv=False)
