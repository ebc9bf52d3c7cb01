"""Attention with a gated prefix: every path against one float64 loop over rows, heads and queries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.errors import InputError
from aligner_jax.model.attention import Prefix, attend, gated_values
from aligner_jax.model.kernels.xla import MAX_BLOCK_DIAGONAL_TOKENS, attend_prefix, attend_prefix_per_head

B, T, H = 2, 9, 6
SEGMENTS_BT = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 3, 3, 3]])
attend_jit = jax.jit(attend, static_argnames=("implementation",))


def _normal(key: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(key).standard_normal(shape), jnp.float32)


def _inputs(num_heads: int, num_kv_heads: int):
    kv = (B, T, num_kv_heads, H)
    return _normal(0, B, T, num_heads, H), _normal(1, *kv), _normal(2, *kv)


def _prefix(
    num_tokens: int, num_heads: int, num_kv_heads: int, rows: int = 1, joint: bool = False, key: int = 3
) -> Prefix:
    shape = (rows, num_tokens, num_kv_heads, H)
    return Prefix(_normal(key, *shape), _normal(key + 1, *shape), _normal(key + 2, rows, num_heads), joint=joint)


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def _oracle(q_btnh, k_bskh, v_bskh, *prefixes: Prefix, segment_ids_bt=None) -> np.ndarray:
    q, k, v = (np.asarray(x, np.float64) for x in (q_btnh, k_bskh, v_bskh))
    group = q.shape[2] // k.shape[2]
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(*q.shape[:3]):
        seen = [s for s in range(t + 1) if segment_ids_bt is None or segment_ids_bt[b, s] == segment_ids_bt[b, t]]
        keys, values = k[b, seen, n // group], v[b, seen, n // group]
        for prefix in prefixes:
            row = b % prefix.k_bpkh.shape[0]
            p_keys, p_values = (np.asarray(x, np.float64)[row, :, n // group] for x in (prefix.k_bpkh, prefix.v_bpkh))
            if prefix.joint:
                keys, values = np.concatenate([p_keys, keys]), np.concatenate([p_values, values])
            else:
                weights = _softmax(p_keys @ q[b, t, n] / np.sqrt(H))
                out[b, t, n] += float(prefix.gate_bn[row, n]) * (weights @ p_values)
        out[b, t, n] += _softmax(keys @ q[b, t, n] / np.sqrt(H)) @ values
    return out


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "segments"),
    [(4, 4, None), (4, 2, None), (4, 2, SEGMENTS_BT), (3, 1, SEGMENTS_BT)],
    ids=["mha", "gqa", "gqa packed", "mqa packed"],
)
def test_text_alone(num_heads: int, num_kv_heads: int, segments):
    inputs = _inputs(num_heads, num_kv_heads)
    o_btnh = attend_jit(*inputs, segment_ids_bt=segments)
    np.testing.assert_allclose(o_btnh, _oracle(*inputs, segment_ids_bt=segments), atol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 3, MAX_BLOCK_DIAGONAL_TOKENS, MAX_BLOCK_DIAGONAL_TOKENS + 1])
@pytest.mark.parametrize("rows", [1, B], ids=["shared", "per_row"])
def test_prefix(num_tokens: int, rows: int):
    inputs = _inputs(4, 2)
    prefix = _prefix(num_tokens, 4, 2, rows)
    o_btnh = attend_jit(*inputs, prefix, segment_ids_bt=SEGMENTS_BT)
    np.testing.assert_allclose(o_btnh, _oracle(*inputs, prefix, segment_ids_bt=SEGMENTS_BT), atol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("rows", [1, B], ids=["shared", "per_row"])
def test_joint_is_one_softmax_over_prefix_and_text_without_gates(num_tokens: int, rows: int):
    inputs = _inputs(4, 2)
    prefix = _prefix(num_tokens, 4, 2, rows, joint=True)
    o_btnh = attend_jit(*inputs, prefix)
    np.testing.assert_allclose(o_btnh, _oracle(*inputs, prefix), atol=1e-5)
    ungated = prefix.replace(gate_bn=jnp.full_like(prefix.gate_bn, jnp.nan))
    np.testing.assert_array_equal(attend_jit(*inputs, ungated), o_btnh)


SEVERAL = {
    "constants": [{"num_tokens": 1}, {"num_tokens": 1}],
    "two of several tokens": [{"num_tokens": 3}, {"num_tokens": 2}],
    "a row's own beside shared ones": [{"num_tokens": 1}, {"num_tokens": 3, "rows": B}, {"num_tokens": 17}],
    "a joint one beside others": [{"num_tokens": 2}, {"num_tokens": 3, "joint": True}, {"num_tokens": 1}],
}


@pytest.mark.parametrize("implementation", ["auto", "xla"])
@pytest.mark.parametrize("several", SEVERAL.values(), ids=SEVERAL)
def test_several_prefixes_have_a_softmax_each(several: list[dict], implementation: str):
    inputs = _inputs(4, 2)
    prefixes = [_prefix(**each, num_heads=4, num_kv_heads=2, key=10 * i) for i, each in enumerate(several)]
    o_btnh = attend_jit(*inputs, prefixes, segment_ids_bt=SEGMENTS_BT, implementation=implementation)
    np.testing.assert_allclose(o_btnh, _oracle(*inputs, *prefixes, segment_ids_bt=SEGMENTS_BT), atol=1e-5)


def test_several_prefixes_have_the_gradients_of_the_reference():
    inputs = (*_inputs(4, 2), [_prefix(p, 4, 2, key=10 * p) for p in (1, 2, 1, 3)])

    def loss(inputs, implementation):
        return jnp.sum(jnp.sin(attend(*inputs, implementation=implementation)))

    fast, slow = (jax.jit(jax.grad(functools.partial(loss, implementation=name)))(inputs) for name in ("auto", "xla"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), fast, slow)


def test_two_joint_prefixes_are_refused():
    with pytest.raises(InputError, match=r"^2 adapters have prefixes that share the text's softmax in one layer"):
        attend(*_inputs(4, 2), [_prefix(2, 4, 2, joint=True), _prefix(1, 4, 2, joint=True)])


@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads"),
    [(1, 4, 2), (2, 4, 4), (5, 3, 1), (MAX_BLOCK_DIAGONAL_TOKENS, 4, 2)],
)
def test_the_fast_prefix_path_equals_the_reference_forward_and_backward(num_tokens, num_heads, num_kv_heads):
    q_btnh, prefix = _inputs(num_heads, num_kv_heads)[0], _prefix(num_tokens, num_heads, num_kv_heads)
    cotangent = _normal(6, *q_btnh.shape)

    def value_and_pullback(function):
        value, pull = jax.vjp(function, q_btnh, prefix.k_bpkh, gated_values(prefix, num_heads))
        return value, pull(cotangent)

    fast, slow = (jax.jit(functools.partial(value_and_pullback, f))() for f in (attend_prefix, attend_prefix_per_head))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), fast, slow)


def test_one_token_adds_a_constant_and_its_key_is_not_read():
    inputs, prefix = _inputs(4, 2), _prefix(1, 4, 2)
    added = attend_jit(*inputs, prefix.replace(k_bpkh=jnp.full_like(prefix.k_bpkh, jnp.nan))) - attend_jit(*inputs)
    by_the_formula = attend_prefix_per_head(inputs[0], prefix.k_bpkh, gated_values(prefix, 4))
    np.testing.assert_allclose(added, by_the_formula, atol=1e-6)
    np.testing.assert_allclose(added - added[:, :1], 0, atol=1e-6)


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_rows_with_prefixes_of_their_own_are_as_alone(num_tokens: int):
    inputs, prefix = _inputs(4, 2), _prefix(num_tokens, 4, 2, rows=B)
    together = attend_jit(*inputs, prefix)
    for b in range(B):
        alone = attend_jit(*jax.tree.map(lambda x, b=b: x[b : b + 1], (*inputs, prefix)))
        np.testing.assert_allclose(together[b : b + 1], alone, atol=1e-6)


@pytest.mark.parametrize("num_tokens", [1, 3, MAX_BLOCK_DIAGONAL_TOKENS + 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gate_zero_is_no_prefix_bit_for_bit(num_tokens: int, dtype: str):
    inputs = jax.tree.map(lambda x: x.astype(dtype), _inputs(4, 2))
    prefix = _prefix(num_tokens, 4, 2)
    closed = prefix.replace(gate_bn=jnp.zeros_like(prefix.gate_bn))
    np.testing.assert_array_equal(attend_jit(*inputs, closed), attend_jit(*inputs))
    assert not np.array_equal(attend_jit(*inputs, prefix), attend_jit(*inputs))


# Weights and outputs of two sums are rounded to 8 bits each, or to 11; outputs are as large as 6.
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.06), ("float16", 0.06 / 8)])
@pytest.mark.parametrize("num_tokens", [0, 1, 3, MAX_BLOCK_DIAGONAL_TOKENS + 1])
def test_half_precision_is_the_float32_result_of_the_same_inputs_rounded(num_tokens: int, dtype: str, tolerance: float):
    inputs = jax.tree.map(lambda x: x.astype(dtype), _inputs(4, 2))
    prefixes = (_prefix(num_tokens, 4, 2),) if num_tokens else ()
    prefixes = jax.tree.map(lambda x: x.astype(dtype), prefixes)
    o_btnh = attend_jit(*inputs, prefixes)
    assert o_btnh.dtype == dtype
    np.testing.assert_allclose(o_btnh.astype(jnp.float32), _oracle(*inputs, *prefixes), atol=tolerance)


def test_large_scores_do_not_overflow():
    q_btnh, k_bskh, v_bskh = _inputs(4, 2)
    prefix = _prefix(3, 4, 2)
    assert jnp.isfinite(attend_jit(q_btnh * 1e4, k_bskh * 1e4, v_bskh, prefix)).all()


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ({"k_bskh": _normal(1, B, T + 1, 2, H)}, "do not fit together"),
        ({"v_bskh": _normal(1, B, T, 4, H)}, "do not fit together"),
        ({"q_btnh": _normal(1, B, T, 3, H)}, "do not fit together"),
        ({"prefix": _prefix(3, 2, 2)}, "do not fit queries"),
        ({"prefix": _prefix(3, 4, 4)}, "do not fit queries"),
        ({"prefix": _prefix(3, 4, 2, rows=3)}, "do not fit queries"),
        ({"implementation": "palas"}, "'palas' is not one of"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(broken: dict, sentence: str):
    q_btnh, k_bskh, v_bskh = _inputs(4, 2)
    with pytest.raises(InputError, match=sentence):
        attend(**{"q_btnh": q_btnh, "k_bskh": k_bskh, "v_bskh": v_bskh, **broken})
