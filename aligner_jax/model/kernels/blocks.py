"""Block sizes of the kernel, and the shapes that it supports."""

import dataclasses

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from aligner_jax.errors import InputError
from aligner_jax.model.kernels.kernel import Inputs, Unsupported

LANES = 128
"""Lanes of a vector register; row lengths and block sizes are multiples of it."""


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Block sizes, in positions. Both spans divide the row, `query` divides the spans, and `key` divides `query`.

    Attributes:
      forward_span, backward_span: keys and values of one head that VMEM holds at a time. Longer spans are fetched
        fewer times. The backward pass also holds their float32 gradients.
      query: queries per program instance.
      key: keys per iteration of the inner loop.
      forward_chunk, backward_chunk: keys per matrix product; they divide `key`. With short chunks the matrix units
        compute one chunk while the vector units compute the softmax of another. Long chunks load weights into the
        matrix units less often.
      diagonal: keys per step of the block on the diagonal, each step against its own and later queries; it divides
        `query`.
      vmem_bytes: limit of the compiler's use of VMEM.
    """

    forward_span: int
    backward_span: int
    query: int
    key: int
    forward_chunk: int
    backward_chunk: int
    diagonal: int
    vmem_bytes: int

    def __post_init__(self):
        for name in ("forward_span", "backward_span", "query", "key", "forward_chunk", "backward_chunk", "diagonal"):
            size = getattr(self, name)
            if size < LANES or size % LANES:
                raise InputError(f"block size {name} is {size}, and must be a positive multiple of {LANES}")
        for whole, part in (
            ("forward_span", "query"),
            ("backward_span", "query"),
            ("query", "key"),
            ("key", "forward_chunk"),
            ("key", "backward_chunk"),
            ("query", "diagonal"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise InputError(
                    f"block size {part} ({getattr(self, part)}) does not divide {whole} ({getattr(self, whole)})"
                )

    def check_length(self, length: int) -> None:
        """Raises InputError if a span does not divide the row."""
        for name in ("forward_span", "backward_span"):
            if length % getattr(self, name):
                raise InputError(
                    f"block size {name} ({getattr(self, name)}) does not divide the row's {length} positions"
                )


@dataclasses.dataclass(frozen=True)
class _Tuning:
    """VMEM per core of a TPU generation, and the chunks with the fewest static bundles (scripts/bench/attention.py)."""

    vmem_mib: int
    forward_chunk: int = 128
    backward_chunk: int = 512
    diagonal: int = 256


# Sizes of VMEM are those of jax's `pallas.tpu.get_tpu_info`.
TUNINGS = {"v4": _Tuning(16), "v5e": _Tuning(128), "v5p": _Tuning(64), "v6e": _Tuning(128), "tpu7x": _Tuning(64)}
_SMALLEST = TUNINGS["v4"]
_QUERY = 512


def default_blocks(length: int, dtype: jnp.dtype, generation: str | None = None) -> BlockSizes:
    """Returns block sizes for rows of `length` positions.

    Args:
      length: length of the rows, a multiple of 128.
      dtype: dtype of queries, keys and values.
      generation: "v4", "v5e", "v5p", "v6e" or "tpu7x"; by default that of the mesh in context or of the attached TPU.
        If neither is known, the sizes fit all generations.
    """
    tuning = TUNINGS.get(generation or _generation_in_context() or "", _SMALLEST)
    # Scores and their products take VMEM too, and more of it in float32.
    query = _largest_divisor(length, LANES, _QUERY if dtype.itemsize == 2 else _QUERY // 2)
    # VMEM holds, for keys and for values, two buffers of the backward pass's span, two of its gradient, and the
    # gradient's float32 sum. Half of VMEM is left for everything else.
    bytes_a_position = 2 * LANES * (4 * dtype.itemsize + 4)
    longest = tuning.vmem_mib * 2**20 // 2 // bytes_a_position
    span = _largest_divisor(length, query, max(longest, query))
    return BlockSizes(
        forward_span=_largest_divisor(length, query, max(2 * longest, query)),
        backward_span=span,
        query=query,
        key=query,
        forward_chunk=_largest_divisor(query, LANES, tuning.forward_chunk),
        backward_chunk=_largest_divisor(query, LANES, tuning.backward_chunk),
        diagonal=_largest_divisor(query, LANES, tuning.diagonal),
        vmem_bytes=tuning.vmem_mib * 2**20 * 15 // 16,
    )


def check_supported(inputs: Inputs) -> None:
    """Raises Unsupported, with the reason, if the kernel does not support these inputs."""
    _, t, n, h = inputs.q_btnh.shape
    s, k = inputs.k_bskh.shape[1:3]
    prefix_tokens = 0 if inputs.prefix_k_bpkh is None else inputs.prefix_k_bpkh.shape[1]
    dtype = inputs.q_btnh.dtype
    if s > t:
        raise Unsupported("the attention kernel has no joint softmax over prefix and text")
    if t % LANES:
        raise Unsupported(f"the attention kernel takes rows of a multiple of {LANES} positions, not {t}")
    if h not in (64, 128):
        raise Unsupported(f"the attention kernel takes head dims 64 and 128, not {h}")
    if n // k > 8:
        raise Unsupported(f"the attention kernel takes up to 8 query heads a kv head, not {n // k}")
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise Unsupported(f"the attention kernel takes float32 and bfloat16, not {dtype}")
    if prefix_tokens > 512:
        raise Unsupported(f"the attention kernel takes up to 512 prefix tokens, not {prefix_tokens}")


def _largest_divisor(whole: int, step: int, limit: int) -> int:
    """Returns the largest multiple of `step` up to `limit` that divides `whole`, which is a multiple of `step`."""
    return next(size for size in range(min(limit, whole) // step * step, 0, -step) if whole % size == 0)


def _generation_in_context() -> str | None:
    try:
        version = pltpu.get_tpu_info().chip_version
    except ValueError:  # There is no TPU here, and no mesh in context names one.
        return None
    return {"7x": "tpu7x"}.get(str(version), str(version))
