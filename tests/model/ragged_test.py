"""The decoding kernel, simulated, against plain attention in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from aligner_jax.model.kernels import ragged
from aligner_jax.model.kernels.kernel import Unsupported
from aligner_jax.model.layout import swaps_last

LAYERS, LAYER = 2, 1


@dataclasses.dataclass(frozen=True)
class Case:
    """One cache and its queries. Rows have 0, 1, an odd number, all and too many filled slots."""

    slots: int = 384
    kv_heads: int = 2
    group: int = 1
    head_dim: int = 128
    beside: int = 1
    dtype: str = "float32"

    @property
    def lengths_b(self) -> np.ndarray:
        return np.asarray([0, 1, self.slots // 2 + 1, self.slots, self.slots + 3], np.int32)

    def arrays(self) -> tuple[jax.Array, ...]:
        """Returns queries, keys and values of the cache, and keys and values beside it."""
        draw, b = np.random.default_rng(0).standard_normal, len(self.lengths_b)
        cache = (LAYERS, b, self.kv_heads, self.slots, self.head_dim)
        beside = (b, self.kv_heads, self.beside, self.head_dim)
        shapes = [(b, self.kv_heads, self.group, self.head_dim), cache, cache, beside, beside]
        return tuple(jnp.asarray(draw(shape), self.dtype) for shape in shapes)


CASES = {
    "head dim 128": Case(),
    "head dim 64": Case(head_dim=64, group=3),
    "head dim 256": Case(head_dim=256),
    "groups of 8": Case(group=8),
    "keys beside the cache": Case(head_dim=64, beside=5, group=2),
    "several blocks of heads": Case(kv_heads=12, head_dim=256, slots=256),
    "fewer slots than a block": Case(slots=100, group=2),
    "slots that no block divides": Case(slots=1100, kv_heads=1),
    "blocks with slots last": Case(slots=1280, kv_heads=1, head_dim=64),
    "head dim 64, few slots": Case(slots=128, head_dim=64, kv_heads=3, group=3),
}


def attend(case: Case, arrays, lengths_b: np.ndarray, interpret: bool | pltpu.InterpretParams = True) -> jax.Array:
    q_bkgh, k_lbksh, v_lbksh, *beside = arrays
    blocks = ragged.filled_blocks(jnp.asarray(lengths_b), k_lbksh)
    swapped = swaps_last(k_lbksh.shape)
    return ragged.attend(
        q_bkgh, k_lbksh, v_lbksh, *beside, jnp.asarray(lengths_b), blocks, jnp.int32(LAYER), slots_last=swapped,
        interpret=interpret,
    )  # fmt: skip


def expected(arrays, lengths_b: np.ndarray) -> np.ndarray:
    """Returns plain attention of every row to its filled slots and the keys beside them, in float64."""
    q_bkgh, k_lbksh, v_lbksh, beside_k_bkxh, beside_v_bkxh = (np.asarray(x, np.float64) for x in arrays)
    rows = []
    for row, length in enumerate(lengths_b):
        k_ksh = np.concatenate([k_lbksh[LAYER, row, :, :length], beside_k_bkxh[row]], axis=1)
        v_ksh = np.concatenate([v_lbksh[LAYER, row, :, :length], beside_v_bkxh[row]], axis=1)
        powers_kgs = np.exp(np.einsum("kgh,ksh->kgs", q_bkgh[row], k_ksh) * q_bkgh.shape[-1] ** -0.5)
        rows.append(np.einsum("kgs,ksh->kgh", powers_kgs / powers_kgs.sum(-1, keepdims=True), v_ksh))
    return np.stack(rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_rows_attend_to_their_filled_slots(name: str, dtype: str):
    case = dataclasses.replace(CASES[name], dtype=dtype)
    arrays = case.arrays()
    actual = attend(case, arrays, case.lengths_b)
    assert actual.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected(arrays, case.lengths_b), atol=2e-6 if dtype == "float32" else 2e-2
    )


@pytest.mark.parametrize("name", ["groups of 8", "slots that no block divides"])
def test_with_the_tpus_memories_simulated(name: str):
    case = CASES[name]
    arrays, parameters = case.arrays(), pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    actual = attend(case, arrays, case.lengths_b, parameters)
    np.testing.assert_allclose(actual, expected(arrays, case.lengths_b), atol=2e-6)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_other_layers_and_blocks_behind_the_last_filled_slot_are_not_read(head_dim: int):
    case = Case(slots=1280, kv_heads=1, head_dim=head_dim)
    q_bkgh, k_lbksh, v_lbksh, *beside = case.arrays()
    lengths_b = np.asarray([0, 1, 512, 513, 1280], np.int32)
    block = ragged.block_sizes(k_lbksh.shape, k_lbksh.dtype)[1]
    assert block == 512
    read_b = np.maximum(-(-lengths_b // block), 1) * block
    is_read = (np.arange(1280) < read_b[:, None])[None] & (np.arange(LAYERS) == LAYER)[:, None, None]
    is_read = is_read[:, :, None, :, None]
    dirty = [jnp.where(is_read, x, jnp.nan) for x in (k_lbksh, v_lbksh)]
    clean = attend(case, (q_bkgh, k_lbksh, v_lbksh, *beside), lengths_b)
    np.testing.assert_array_equal(attend(case, (q_bkgh, *dirty, *beside), lengths_b), clean)


@pytest.mark.parametrize("lengths", [[0], [0, 1, 128, 129, 256, 300, 999], [256] * 3, [7, 0, 0, 200]])
def test_blocks_are_those_with_filled_slots_in_order(lengths: list[int]):
    cache = jax.ShapeDtypeStruct((1, len(lengths), 32, 256, 128), jnp.bfloat16)
    assert ragged.block_sizes(cache.shape, cache.dtype) == (16, 128)
    blocks = ragged.filled_blocks(jnp.asarray(lengths), cache)
    wanted = [
        (row, block) for row, length in enumerate(lengths) for block in range(max(-(-min(length, 256) // 128), 1))
    ]
    rows_i, starts_b = np.asarray(blocks.rows_i), np.asarray(blocks.starts_b)
    assert [(rows_i[i], i - starts_b[rows_i[i]]) for i in range(int(blocks.count_1[0]))] == wanted
    assert rows_i.shape == (2 * len(lengths),)
    assert rows_i.max() < len(lengths)


@pytest.mark.parametrize("slots", [256, 300, 1280])
def test_the_slots_that_a_row_reads_are_those_of_its_blocks(slots: int):
    cache = jax.ShapeDtypeStruct((2, 1, 1, slots, 128), jnp.bfloat16)
    block = ragged.block_sizes(cache.shape, cache.dtype)[1]
    for filled in (0, 1, 255, 256, 257, 512, 513, slots):
        blocks = int(ragged.filled_blocks(jnp.asarray([filled]), cache).count_1[0])
        # The last block may end behind the last slot.
        assert ragged.slots_read(filled, cache) == min(blocks * block, slots)


def test_a_7b_model_reads_half_of_its_slots_if_lengths_are_uniform():
    """The figure of docs/tpu.md, with every 16th length from 0 to 2,048."""
    lengths_b = jnp.arange(0, 2049, 16)
    cache = jax.ShapeDtypeStruct((32, len(lengths_b), 32, 2048, 128), jnp.bfloat16)
    read = int(ragged.filled_blocks(lengths_b, cache).count_1[0]) * ragged.block_sizes(cache.shape, cache.dtype)[1]
    assert read / (2048 * len(lengths_b)) == pytest.approx(0.531, abs=0.005)


@pytest.mark.parametrize(
    ("shape", "dtype", "beside", "reason"),
    [
        ((2, 4, 2, 256, 96), "float32", 1, "head dims 64, 128 and 256, not 96"),
        ((2, 4, 2, 200, 64), "float32", 1, "a multiple of 128 slots for head dim 64, not 200"),
        ((2, 4, 2, 256, 128), "float16", 1, "both float32 or both bfloat16, not float16 and float16"),
        ((2, 4, 2, 256, 128), "float32", 257, "256 keys beside the cache, not 257"),
        ((2, 4096, 1, 8192, 128), "bfloat16", 1, "up to 32768 blocks of 512 slots, not 65536"),
    ],
)
def test_shapes_that_are_refused(shape: tuple[int, ...], dtype: str, beside: int, reason: str):
    cache = jax.ShapeDtypeStruct(shape, dtype)
    with pytest.raises(Unsupported, match=reason):
        ragged.check_supported(cache.dtype, cache, beside)
    assert not ragged.supports(cache.dtype, cache, beside)


def test_a_cache_of_another_dtype_than_the_queries_is_refused():
    cache = jax.ShapeDtypeStruct((2, 4, 2, 256, 128), jnp.bfloat16)
    assert ragged.supports(jnp.dtype("bfloat16"), cache, 1)
    with pytest.raises(Unsupported, match="not float32 and bfloat16"):
        ragged.check_supported(jnp.dtype("float32"), cache, 1)
