"""The GPU kernel lowered for NVIDIA cards without one, and the blocks that it visits; its results: flash_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from aligner_jax.model.attention import Prefix, attend
from aligner_jax.model.kernels.kernel import Unsupported
from aligner_jax.model.kernels.triton_blocks import Blocks, default_blocks, end_query_blocks, first_key_blocks

# The message comes from JAX's lowering, which has no other way to Triton.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
FORWARD, DQ, DKV = (f"aligner_attention_{name}" for name in ("forward", "backward_dq", "backward_dkv"))


def shapes(length: int, head_dim: int, dtype: str, *, packed: bool = False, before: int = 0, tokens: int = 0):
    """Returns queries, keys, values, prefix and segment ids of attention as shapes and dtypes."""
    q, kv = (jax.ShapeDtypeStruct((2, length, heads, head_dim), dtype) for heads in (6, 2))
    rows = jax.ShapeDtypeStruct((1, before or tokens, 2, head_dim), dtype)
    prefix = Prefix(rows, rows, jax.ShapeDtypeStruct((1, 6), jnp.float32), joint=before > 0)
    segments_bt = jax.ShapeDtypeStruct((2, length), jnp.int32) if packed else None
    return q, kv, kv, prefix if before or tokens else None, segments_bt


def card(kind: str):
    """Returns a context in which programs are lowered for this kind of GPU."""
    return use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=AbstractDevice(kind, None, "cuda")))


def lowered(arguments, *, kind: str = "NVIDIA H100", implementation: str = "triton", backward: bool = True) -> str:
    """Returns the program, lowered for CUDA."""

    def run(q, k, v, prefix, segments_bt):
        def attention(*inputs):
            return attend(*inputs, segment_ids_bt=segments_bt, implementation=implementation)

        if not backward:
            return attention(q, k, v, prefix)
        o, pull = jax.vjp(attention, q, k, v, prefix)
        return pull(o)

    with card(kind):
        return jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def calls(program: str) -> dict[str, int]:
    """Returns how often each kernel is called."""
    triton = [line for line in program.splitlines() if "__gpu$xla.gpu.triton" in line]
    return {name: sum(f'name = "{name}"' in line for line in triton) for name in (FORWARD, DQ, DKV)}


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_the_program_for_nvidia_cards_holds_the_kernels(packed: bool):
    arguments = shapes(2048, 128, "bfloat16", packed=packed, tokens=10)
    assert calls(lowered(arguments)) == {FORWARD: 1, DQ: 1, DKV: 1}
    assert calls(lowered(arguments, backward=False)) == {FORWARD: 1, DQ: 0, DKV: 0}


@pytest.mark.parametrize(
    ("length", "head_dim", "dtype", "before"),
    [(513, 96, "float32", 0), (200, 64, "float16", 20), (1000, 256, "bfloat16", 300), (9, 8, "float32", 3)],
)
def test_every_length_head_and_dtype_lowers(length: int, head_dim: int, dtype: str, before: int):
    program = lowered(shapes(length, head_dim, dtype, packed=True, before=before), kind="NVIDIA L4")
    # Keys before the text's are another call of the same kernel.
    assert calls(program) == {FORWARD: 1, DQ: 1, DKV: 2 if before else 1}


def test_without_a_card_of_compute_capability_8_the_kernel_is_refused_by_name_and_left_out_by_auto():
    arguments = shapes(200, 96, "float32")
    with pytest.raises(Unsupported, match="neither is there one here"):
        jax.eval_shape(lambda *inputs: attend(*inputs, implementation="triton"), *arguments[:4])
    with pytest.raises(Unsupported, match=r"compute capability 8.0 and up, not 7.5"):
        lowered(arguments, kind="Tesla T4")
    assert calls(lowered(arguments, kind="Tesla T4", implementation="auto")) == {FORWARD: 0, DQ: 0, DKV: 0}
    assert calls(lowered(arguments, kind="NVIDIA A100", implementation="auto")) == {FORWARD: 1, DQ: 1, DKV: 1}
    traced = jax.jit(lambda *inputs: attend(*inputs)).trace(*arguments[:4])
    assert "triton" not in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (shapes(128, 257, "float32"), "head dims up to 256, not 257"),
        (shapes(128, 64, "float8_e4m3fn"), "takes float32, bfloat16, float16, not float8_e4m3fn"),
        ((*shapes(128, 64, "bfloat16")[:2], *shapes(128, 64, "float16")[2:]), "of one dtype, not bfloat16, float16"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused_by_name(arguments, reason: str):
    with pytest.raises(Unsupported, match=reason):
        jax.eval_shape(lambda *inputs: attend(*inputs, implementation="triton_interpret"), *arguments[:4])


@pytest.mark.parametrize(("query", "key"), [(64, 32), (32, 64), (128, 16)])
def test_no_block_with_a_pair_of_one_segment_is_left_out(query: int, key: int):
    draw = np.random.default_rng(0)
    sorted_bt = np.sort(draw.integers(0, 6, (4, 300)), axis=1)
    unsorted_bt = draw.permuted(np.repeat(draw.integers(0, 30, (4, 30)), 10, axis=1).reshape(4, 30, 10), axis=1)
    ids_bt = np.concatenate([sorted_bt, unsorted_bt.reshape(4, 300)])
    pairs_bts = np.tril(ids_bt[:, :, None] == ids_bt[:, None, :])
    first_bi, end_bj = (np.asarray(f(ids_bt, query, key)) for f in (first_key_blocks, end_query_blocks))
    for b, t, s in zip(*np.nonzero(pairs_bts), strict=True):
        assert first_bi[b, t // query] <= s // key
        assert t // query < end_bj[b, s // key]


def test_blocks_of_other_documents_are_left_out_where_ids_are_in_order():
    ids_bt = np.repeat([[1, 1, 2, 2, 3, 0], [2, 1, 2, 2, 1, 1]], 64, axis=1)[:, :350]
    # In the second row, blocks between two of the same document are visited.
    np.testing.assert_array_equal(first_key_blocks(ids_bt, 64, 64), [[0, 0, 2, 2, 4, 5], [0, 1, 0, 0, 1, 1]])
    np.testing.assert_array_equal(end_query_blocks(ids_bt, 64, 64), [[2, 2, 4, 4, 5, 6], [4, 6, 4, 4, 6, 6]])


@pytest.mark.parametrize(
    ("head_dim", "dtype", "tiles", "blocks", "tile_bytes"),
    [
        (8, "bfloat16", 2, Blocks(128, 64, 3), (2 * 128 + 3 * 2 * 64) * 16 * 2),
        (64, "bfloat16", 1, Blocks(128, 64, 3), (128 + 3 * 2 * 64) * 64 * 2),
        (64, "float16", 2, Blocks(128, 64, 3), (2 * 128 + 3 * 2 * 64) * 64 * 2),
        (64, "float32", 2, Blocks(64, 64, 2), (2 * 64 + 2 * 2 * 64) * 64 * 4),
        (96, "bfloat16", 1, Blocks(128, 64, 2), (128 + 2 * 2 * 64) * 128 * 2),
        (128, "bfloat16", 1, Blocks(128, 64, 2), (128 + 2 * 2 * 64) * 128 * 2),
        (128, "bfloat16", 2, Blocks(64, 64, 2), (2 * 64 + 2 * 2 * 64) * 128 * 2),
        (128, "float32", 1, Blocks(64, 32, 2), (64 + 2 * 2 * 32) * 128 * 4),
        (256, "float16", 1, Blocks(64, 32, 2), (64 + 2 * 2 * 32) * 256 * 2),
        (256, "bfloat16", 2, Blocks(32, 32, 2), (2 * 32 + 2 * 2 * 32) * 256 * 2),
        (256, "float32", 1, Blocks(32, 16, 2), (32 + 2 * 2 * 16) * 256 * 4),
        (256, "float32", 2, Blocks(16, 16, 1), (2 * 16 + 1 * 2 * 16) * 256 * 4),
    ],
)
def test_default_blocks_leave_room_in_shared_memory(
    head_dim: int, dtype: str, tiles: int, blocks: Blocks, tile_bytes: int
):
    """The smallest shared memory of a program is 99 KiB. Compiled for an H100, the forward pass takes 98,432 bytes."""
    assert default_blocks(4096, head_dim, jnp.dtype(dtype), tiles=tiles) == blocks
    assert (
        blocks.shared_bytes(max(16, 1 << (head_dim - 1).bit_length()), jnp.dtype(dtype).itemsize, tiles) == tile_bytes
    )
    assert tile_bytes + 3 * 2**10 <= 99 * 2**10


def test_blocks_are_no_longer_than_short_rows():
    lengths = {length: default_blocks(length, 64, jnp.dtype("bfloat16"), tiles=1) for length in (1, 16, 17, 100, 129)}
    sizes = {length: (blocks.own, blocks.streamed) for length, blocks in lengths.items()}
    assert sizes == {1: (16, 16), 16: (16, 16), 17: (32, 32), 100: (128, 64), 129: (128, 64)}
