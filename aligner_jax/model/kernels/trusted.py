"""Comparison of kernels with XLA's attention on the card at hand, before they are used (shape legend: llama.py).

A kernel for GPUs depends on the generation of the card, its driver, cuDNN and the compiler, of which no test has seen
every combination. So each process compares a kernel once per kind of card, dtype and shape of head, packed and
unpacked, forward and backward. Processes with cards of one kind come to the same result, so all lower one program.
"""

import functools
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aligner_jax.model.kernels import xla
from aligner_jax.model.kernels.cards import cards
from aligner_jax.model.kernels.kernel import Inputs, Kernel

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
      length: positions of a row; a multiple of 128, or odd or even otherwise, as the rows of the inputs.
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


@functools.cache
def _agrees(name: str, kernel: Kernel, sample: Sample, device) -> bool:
    # The caller traces, under a mesh and a guard against transfers; all three belong to its thread.
    with ThreadPoolExecutor(1) as thread:
        try:
            found = thread.submit(differences, kernel, sample, device).result()
        # A compiler or driver that refuses a kernel may raise anything.
        except Exception as failure:
            reason = f"it fails: {' '.join(str(failure).split())[:300] or type(failure).__name__}"
        else:
            worst = max(found, key=lambda key: found[key])
            if found[worst] <= TOLERANCE[sample.dtype]:
                return True
            reason = f"its {worst} differs from XLA's by {found[worst]:.2g} of its size"
    rows = "packed rows" if sample.packed else "rows"
    shape = f"{sample.dtype}, head dim {sample.head_dim}, {rows} of {sample.length}"
    warnings.warn(f"{device.device_kind}: attention by {name!r} is not used ({shape}): {reason}", stacklevel=2)
    return False


def _sample(inputs: Inputs) -> Sample:
    (_, t, n, h), (_, s, k, _) = inputs.q_btnh.shape, inputs.k_bskh.shape
    length = 256 if t % 128 == 0 else 200 + t % 2
    return Sample(str(inputs.q_btnh.dtype), h, n // k, length, min(s - t, 3), inputs.segment_ids_bt is not None)


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
    rows = [[(1, 100), (2, 28), (1, 40), (3, sample.length - 168)], [(5, 7), (2, 150), (0, sample.length - 157)]]
    ids_bt = np.asarray([[i for i, size in row for _ in range(size)] for row in rows], np.int32)
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
