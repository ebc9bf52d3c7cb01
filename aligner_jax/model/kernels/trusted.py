"""Comparison of kernels with XLA's attention on the card at hand, before they are used (shape legend: llama.py).

A kernel for GPUs depends on the generation of the card, its driver, cuDNN and the compiler, of which no test has seen
every combination. So each process compares a kernel once per kind of card, dtype and shape of head, packed and
unpacked, forward and backward.

Processes with cards of one kind come to the same result, unless a kernel fails because memory is short or the driver
is busy. So training compares the steps of all processes before it takes one, and records the results in the workdir
(`tasks.same_step`).
"""

import gc
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aligner_jax.model.kernels import xla
from aligner_jax.model.kernels.cards import cards
from aligner_jax.model.kernels.kernel import Inputs, Kernel
from aligner_jax.model.kernels.triton_blocks import padded

TOLERANCE = {"bfloat16": 2**-4, "float16": 2**-6, "float32": 2**-6}
"""Largest difference from XLA's attention in float32, relative to a position's largest value.

Five times what XLA's attention in the dtype is off. Cards may round the operands of float32 products to the 10 bits of
float16."""
_LEAST, _LEAST_QUERY = 0.01, 0.25
"""Positions count as at least this fraction of the largest.

Few queries see the last keys, so their gradients are small. In a gradient of a query, large numbers cancel: that of a
document's first position is zero."""


class Sample(NamedTuple):
    """Shapes that a kernel is compared at.

    Attributes:
      group: query heads per kv head.
      length: positions of a row, see `_length`.
      before: keys of a joint prefix.
    """

    dtype: str
    head_dim: int
    group: int
    length: int
    before: int
    packed: bool


def trusted(name: str, kernel: Kernel, inputs: Inputs) -> bool:
    """Returns True if the kernel agrees with XLA's attention on every kind of card of this process.

    Machines without a card trust every kernel, since they can only compile programs and not run them. The first
    disagreement is a warning that names the card, the kernel and the difference.

    Args:
      name: name of the kernel, for the warning.
      kernel: a kernel for NVIDIA cards that supports the inputs.
      inputs: inputs, or their tracers; only shapes and dtypes are read.
    """
    return all(_agrees(name, kernel, _sample(inputs), card) for card in cards())


def differences(kernel: Kernel, sample: Sample, device) -> dict[str, float]:
    """Returns the differences of output and gradients from XLA's attention, by name."""
    run = jax.jit(_run, static_argnums=0)
    inputs, do_btnh = _draw(sample, device)
    actual = jax.device_get(run(kernel, inputs, do_btnh))
    q_btnh, k_bskh, v_bskh, do_btnh = (x.astype(jnp.float32) for x in (*inputs[:3], do_btnh))
    with jax.default_matmul_precision("highest"):
        wanted = run(xla.KERNEL, Inputs(q_btnh, k_bskh, v_bskh, inputs.segment_ids_bt), do_btnh)
    least = {"gradient of q": _LEAST_QUERY}
    wanted = jax.device_get(wanted)
    return {key: _difference(actual[key], wanted[key], least.get(key, _LEAST)) for key in wanted}


def verdicts() -> dict[str, bool]:
    """Returns the comparisons of this process: True if a kernel is used, by its name, kind of card and inputs."""
    return {
        f"{name!r} ({device.device_kind}, {_described(sample)})": reason is None
        for (name, _, sample, device), reason in _reasons.items()
    }


_reasons: dict[tuple[str, Kernel, Sample, Any], str | None] = {}
"""Results of the comparisons: why a kernel is not used, or None."""


def _agrees(name: str, kernel: Kernel, sample: Sample, device) -> bool:
    key = (name, kernel, sample, device)
    if key not in _reasons:
        _reasons[key] = reason = _reason(kernel, sample, device)
        if reason is not None:
            shape = _described(sample)
            warnings.warn(f"{device.device_kind}: attention by {name!r} is not used ({shape}): {reason}", stacklevel=2)
    return _reasons[key] is None


def _reason(kernel: Kernel, sample: Sample, device) -> str | None:
    """Returns why the kernel is not to be used; None if it agrees."""
    # The caller traces, under a mesh and a guard against transfers; all three belong to its thread.
    with ThreadPoolExecutor(1) as thread:
        try:
            found = thread.submit(_differences_with_retry, kernel, sample, device).result()
        # A compiler or driver that refuses a kernel may raise anything.
        except Exception as failure:
            return f"it fails: {' '.join(str(failure).split())[:300] or type(failure).__name__}"
    worst = max(found, key=lambda key: found[key])
    if found[worst] <= TOLERANCE[sample.dtype]:
        return None
    return f"its {worst} differs from XLA's by {found[worst]:.2g} of its size"


def _differences_with_retry(kernel: Kernel, sample: Sample, device) -> dict[str, float]:
    try:
        return differences(kernel, sample, device)
    except Exception as failure:
        if "RESOURCE_EXHAUSTED" not in str(failure):
            raise
    # Memory of arrays that nothing refers to is free after this, and may suffice. The failed attempt's are among them.
    gc.collect()
    return differences(kernel, sample, device)


def _described(sample: Sample) -> str:
    rows = "packed rows" if sample.packed else "rows"
    return f"{sample.dtype}, head dim {sample.head_dim}, {rows} of {sample.length}"


def _sample(inputs: Inputs) -> Sample:
    (_, t, n, h), (_, s, k, _) = inputs.q_btnh.shape, inputs.k_bskh.shape
    return Sample(str(inputs.q_btnh.dtype), h, n // k, _length(t), min(s - t, 3), inputs.segment_ids_bt is not None)


def _length(t: int) -> int:
    """Returns the length of the sample for rows of length t: a multiple of 128, or odd or even otherwise, as t is."""
    if t >= 128:
        return 256 if t % 128 == 0 else 200 + t % 2
    # Blocks of Triton's programs are no longer than the padded rows, so there is a sample for every size of block.
    return t if t == padded(t) else padded(t) - 2 + t % 2


def _draw(sample: Sample, device) -> tuple[Inputs, jax.Array]:
    draw = np.random.default_rng(0).standard_normal
    q, kv = (
        (2, sample.length, 2 * sample.group, sample.head_dim),
        (2, sample.before + sample.length, 2, sample.head_dim),
    )
    q_btnh, k_bskh, v_bskh, do_btnh = (
        jax.device_put(draw(shape).astype(jnp.dtype(sample.dtype)), device) for shape in (q, kv, kv, q)
    )
    if not sample.packed:
        return Inputs(q_btnh, k_bskh, v_bskh), do_btnh
    # Documents end inside the blocks of a kernel, one returns, and padding has an id of its own.
    rows = [[(1, 0.4), (2, 0.5), (1, 0.65), (3, 1)], [(5, 0.03), (2, 0.6), (0, 1)]]
    ids_bt = np.zeros((2, sample.length), np.int32)
    for ids_t, documents in zip(ids_bt, rows, strict=True):
        for index, end in reversed(documents):
            ids_t[: round(end * sample.length)] = index
    return Inputs(q_btnh, k_bskh, v_bskh, jax.device_put(ids_bt, device)), do_btnh


def _run(kernel: Kernel, inputs: Inputs, do_btnh: jax.Array) -> dict[str, jax.Array]:
    out = kernel.forward(inputs, True)
    assert out.text_o_btnh is not None
    assert out.log_bnt is not None
    d = kernel.backward(inputs, out.text_o_btnh, out.log_bnt, do_btnh)
    gradients = {"gradient of q": d.q_btnh, "gradient of k": d.k_bskh, "gradient of v": d.v_bskh}
    return {"output": out.o_btnh, "output without residuals": kernel.forward(inputs, False).o_btnh, **gradients}


def _difference(actual: np.ndarray, wanted: np.ndarray, least: float) -> float:
    difference, size = np.max(np.abs(actual.astype(np.float32) - wanted), axis=-1), np.max(np.abs(wanted), axis=-1)
    worst = float(np.max(difference / np.maximum(size, least * np.max(size))))
    return worst if np.isfinite(worst) else np.inf
