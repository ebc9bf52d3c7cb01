"""Prefixes of rows: a sum of softmaxes of any sizes, which unused tokens and other groups do not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.model.attention import Prefix, add_gated, attend
from aligner_jax.model.row_prefix import RowPrefix

B, T, N, K, H, P = 3, 5, 4, 2, 6, 8
SIZES = [(3, 2), (8,), ()]
"""Tokens of the prefixes of each row."""


def normal(key: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(key), shape)


@pytest.fixture(scope="module")
def prefix() -> RowPrefix:
    group, gate = np.zeros((B, P), np.int32), np.zeros((B, P, N), np.float32)
    for row, sizes in enumerate(SIZES):
        first = 0
        for number, size in enumerate(sizes):
            group[row, first : first + size] = number + 1
            gate[row, first : first + size] = normal(10 * row + number, N)
            first += size
    return RowPrefix(normal(1, B, N, H), 3 * normal(2, B, P, K, H), normal(3, B, P, K, H), gate, group)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_every_prefix_has_a_softmax_of_its_own(scale: float, prefix: RowPrefix):
    q_btnh, o_btnh = scale * normal(4, B, T, N, H), normal(5, B, T, N, H)
    found = add_gated(o_btnh, q_btnh, [prefix])
    for row, sizes in enumerate(SIZES):
        wanted, first = o_btnh[row : row + 1] + prefix.constant_bnh[row][None, None], 0
        for size in sizes:
            tokens = slice(first, first + size)
            k_bpkh, v_bpkh = (x[row : row + 1, tokens] for x in (prefix.k_bpkh, prefix.v_bpkh))
            alone = Prefix(k_bpkh, v_bpkh, prefix.gate_bpn[row : row + 1, first])
            wanted, first = add_gated(wanted, q_btnh[row : row + 1], [alone]), first + size
        np.testing.assert_allclose(found[row], wanted[0], rtol=1e-5, atol=1e-5)


def test_a_row_without_prefixes_is_the_text_alone_bit_for_bit(prefix: RowPrefix):
    none = prefix.replace(constant_bnh=jnp.zeros((B, N, H)), gate_bpn=jnp.zeros((B, P, N)))
    q_btnh, k_bskh, v_bskh = normal(4, B, T, N, H), normal(5, B, T, K, H), normal(6, B, T, K, H)
    np.testing.assert_array_equal(attend(q_btnh, k_bskh, v_bskh, [none]), attend(q_btnh, k_bskh, v_bskh))


def test_a_row_does_not_see_the_prefixes_of_others(prefix: RowPrefix):
    q_btnh, o_btnh = normal(4, B, T, N, H), jnp.zeros((B, T, N, H))
    other = jax.tree.map(lambda x: jnp.asarray(x).at[1:].set(0), prefix)
    found, again = (add_gated(o_btnh, q_btnh, [each]) for each in (prefix, other))
    np.testing.assert_array_equal(found[0], again[0])
    assert np.abs(found[1] - again[1]).max() > 0.1
