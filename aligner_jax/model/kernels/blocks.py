"""Which shapes the kernel takes, and how it cuts them."""

import dataclasses

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from aligner_jax.errors import InputError
from aligner_jax.model.kernels.kernel import Inputs, Unsupported

LANES = 128
"""Lengths and blocks are multiples of a vector register's lanes."""


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """How a row is cut. All are numbers of positions; each divides the one before it, and `query` divides the row.

    Attributes:
      forward_span, backward_span: keys and values of one head that stay in VMEM together. The longer, the fewer times
        they are fetched; the backward pass also holds their float32 gradients. Each divides the row.
      query: queries a program.
      key: keys an iteration of a program's inner loop.
      forward_chunk, backward_chunk: keys whose scores are computed at a time within an iteration. Short chunks let
        the matrix units work on one while the vector units do the softmax of another; long ones push weights less.
      diagonal: the block on the diagonal is computed in steps of so many keys, each against the queries from there on.
      vmem_bytes: how much VMEM the compiler may use.
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
        """Raises InputError where a span does not divide the row."""
        for name in ("forward_span", "backward_span"):
            if length % getattr(self, name):
                raise InputError(
                    f"block size {name} ({getattr(self, name)}) does not divide the row's {length} positions"
                )


@dataclasses.dataclass(frozen=True)
class _Tuning:
    """What takes the fewest static bundles on a generation (scripts/bench/attention.py), and its VMEM a core."""

    vmem_mib: int
    forward_chunk: int = 128
    backward_chunk: int = 512
    diagonal: int = 256


# VMEM: as jax's pallas.tpu.get_tpu_info has it.
TUNINGS = {"v4": _Tuning(16), "v5e": _Tuning(128), "v5p": _Tuning(64), "v6e": _Tuning(128), "tpu7x": _Tuning(64)}
_SMALLEST = TUNINGS["v4"]
_QUERY = 512


def default_blocks(length: int, dtype: jnp.dtype, generation: str | None = None) -> BlockSizes:
    """Block sizes for rows of this many positions.

    Args:
      length: a multiple of 128.
      generation: "v4", "v5e", "v5p", "v6e" or "tpu7x"; by default that of the mesh in context or of the attached TPU,
        and, where neither says, sizes that fit all of them.
    """
    tuning = TUNINGS.get(generation or _generation_in_context() or "", _SMALLEST)
    # Scores and their products take VMEM too, of float32 more.
    query = _largest_divisor(length, LANES, _QUERY if dtype.itemsize == 2 else _QUERY // 2)
    # Of a span of the backward pass VMEM holds, for keys and for values: the span and its gradient twice each (one is
    # worked on while the next is fetched), and the gradient's float32 sum. Half of VMEM is for all the rest.
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
    """Raises Unsupported, with the reason, where the kernel cannot take these inputs."""
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
    """The largest multiple of `step`, of at most `limit`, that divides `whole`, itself a multiple of `step`."""
    return next(size for size in range(min(limit, whole) // step * step, 0, -step) if whole % size == 0)


def _generation_in_context() -> str | None:
    try:
        version = pltpu.get_tpu_info().chip_version
    except ValueError:  # neither a TPU here nor one that a mesh in context names
        return None
    return {"7x": "tpu7x"}.get(str(version), str(version))
