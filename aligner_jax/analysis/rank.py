"""Effective rank of an adapter's tokens or low-rank updates: the number of directions that they use."""

import numpy as np
from jaxtyping import Float

from aligner_jax.analysis.entries import factors
from aligner_jax.peft import Adapter


def entropy_rank(sigma_mp: Float[np.ndarray, "*m p"]) -> Float[np.ndarray, "*m"]:
    """Returns the effective rank by entropy: exp(−Σ qᵢ ln qᵢ) with qᵢ = σᵢ / Σ σ (Roy and Vetterli, EUSIPCO 2007).

    It ranges from 1 (one direction) to p (all singular values equal), and is 0 for a matrix of zeros.
    """
    total = sigma_mp.sum(axis=-1, keepdims=True)
    q = np.divide(sigma_mp, total, out=np.zeros_like(sigma_mp), where=total > 0)
    logs = np.log(q, out=np.zeros_like(q), where=q > 0)
    return np.where(total[..., 0] > 0, np.exp(-np.sum(q * logs, axis=-1)), 0.0)


def participation_ratio(sigma_mp: Float[np.ndarray, "*m p"]) -> Float[np.ndarray, "*m"]:
    """Returns (Σ σᵢ²)² / Σ σᵢ⁴. It has the range of `entropy_rank`, but small directions count for less."""
    squares = np.square(sigma_mp)
    top, bottom = np.square(squares.sum(axis=-1)), np.square(squares).sum(axis=-1)
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def spectra(adapter: Adapter) -> dict[str, Float[np.ndarray, "m p"]]:
    """Returns the singular values of an adapter's matrices [p, width], largest first, by the matrices' name.

    Tokens that all layers share are one matrix. LLaMA-Adapter's tokens, and the keys and values of prefix tuning, are
    one matrix per layer. LoRA has one matrix per layer and target, the update A B. Other methods have no matrices.
    """
    found = {}
    for name, leaf in adapter.trainable.items():
        if name == "tokens_pd":
            found["tokens"] = _singular(np.asarray(leaf)[None])
        elif name in ("tokens_lpd", "keys_lpkh", "values_lpkh"):
            x = np.asarray(leaf)
            found[name.partition("_")[0]] = _singular(x.reshape(*x.shape[:2], -1))
    for target, (a_lir, b_lro) in factors(adapter).items():
        # A B has the singular values of the small product of the triangular factors of A and Bᵀ.
        ra, rb = np.linalg.qr(a_lir).R, np.linalg.qr(b_lro.swapaxes(1, 2)).R
        found[f"update of {target}"] = _singular(ra @ rb.swapaxes(1, 2))
    return found


def fresh_spectrum(p: int, width: int) -> Float[np.ndarray, " p"]:
    """Returns the singular values of p tokens drawn from N(0, 1), which the option init_std would scale."""
    return _singular(np.random.default_rng(0).standard_normal((1, p, width)))[0]


def _singular(x_mpd: np.ndarray) -> np.ndarray:
    return np.linalg.svd(x_mpd.astype(np.float64), compute_uv=False)
