"""Kernels for NVIDIA cards are compared with XLA's attention before use; a CPU stands for the card."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from aligner_jax.model import attention
from aligner_jax.model.attention import Order, attend
from aligner_jax.model.kernels import trusted, xla
from aligner_jax.model.kernels.cards import cards
from aligner_jax.model.kernels.kernel import Inputs, Kernel, Unsupported
from aligner_jax.model.kernels.triton_blocks import default_blocks

RIGHT = xla.with_gated_prefix(lambda inputs: None, xla.attend_causally, xla.attend_causally_backward)


def forward_across_documents(q_btnh, k_bskh, v_bskh, segment_ids_bt):
    return xla.attend_causally(q_btnh, k_bskh, v_bskh, None)


def backward_without_the_last_row(*arguments):
    dq_btnh, dk_bskh, dv_bskh = xla.attend_causally_backward(*arguments)
    return dq_btnh, dk_bskh.at[1, -1].set(0), dv_bskh


def forward_of_nan(*arguments):
    o_btnh, log_bnt = xla.attend_causally(*arguments)
    return o_btnh.at[0, 3].set(jnp.nan), log_bnt


def refused(*arguments):
    raise RuntimeError("no engine\nfor this graph")


def kernel(forward=xla.attend_causally, backward=xla.attend_causally_backward, supports=lambda inputs: None) -> Kernel:
    return xla.with_gated_prefix(supports, forward, backward)


def inputs(*, packed: bool, length: int = 256, dtype: str = "bfloat16", before: int = 0) -> Inputs:
    q, kv = (jax.ShapeDtypeStruct((3, s, n, 64), dtype) for s, n in ((length, 4), (length + before, 2)))
    return Inputs(q, kv, kv, jax.ShapeDtypeStruct((3, length), jnp.int32) if packed else None)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch):
    """Makes this machine's CPU the card, and returns a function that sets the kernels, in order of preference."""
    device = jax.devices("cpu")[0]
    monkeypatch.setattr(trusted, "cards", lambda: [device])
    trusted._reasons.clear()

    def install(**kernels: Kernel) -> None:
        monkeypatch.setattr(attention, "_NAMED", kernels)
        monkeypatch.setitem(attention.KERNELS, "cuda", Order(tuple(kernels), tuple(kernels)))
        monkeypatch.delitem(attention.KERNELS, "tpu")

    return install


@pytest.mark.parametrize("dtype", trusted.TOLERANCE)
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize(
    ("length", "before"), [(256, 0), (131, 3), (9, 0), (33, 3)], ids=["", "joint, odd", "short", "joint, short"]
)
def test_a_right_kernel_is_used_without_a_word(card, dtype: str, packed: bool, length: int, before: int):
    card(first=RIGHT, second=kernel())
    found = attention._kernel("cuda", inputs(packed=packed, length=length, dtype=dtype, before=before))
    assert found is RIGHT
    assert list(trusted.verdicts().values()) == [True]


def test_rows_that_fill_no_block_are_compared_at_a_length_with_their_blocks():
    lengths = [16, 32, 48, 65, 9, 33, 128, 130, 131, 512, 513]
    assert [trusted._length(t) for t in lengths] == [16, 32, 62, 127, 15, 63, 256, 200, 201, 256, 201]
    for t in range(1, 600):
        length, dtype = trusted._length(t), jnp.dtype("bfloat16")
        assert default_blocks(length, 64, dtype, tiles=2) == default_blocks(t, 64, dtype, tiles=2)
        assert (length % 2, length % 128 == 0) == (t % 2, t % 128 == 0)


def test_a_kernel_without_memory_is_compared_once_more(card):
    failures = ["RESOURCE_EXHAUSTED: Out of memory"]

    def forward(*arguments):
        if failures:
            raise RuntimeError(failures.pop())
        return xla.attend_causally(*arguments)

    late = kernel(forward=forward)
    card(first=late, second=RIGHT)
    assert attention._kernel("cuda", inputs(packed=False)) is late
    failures += ["RESOURCE_EXHAUSTED: Out of memory"] * 3
    with pytest.warns(UserWarning, match="it fails: RESOURCE_EXHAUSTED: Out of memory$"):
        assert attention._kernel("cuda", inputs(packed=True)) is RIGHT
    assert len(failures) == 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            kernel(forward=forward_across_documents),
            r"output( without residuals)? differs from XLA's by [1-9.]+ of its size",
        ),
        (kernel(backward=backward_without_the_last_row), r"gradient of k differs from XLA's by 0\.\d+ of its size"),
        (kernel(forward=forward_of_nan), "differs from XLA's by inf of its size"),
        (kernel(forward=refused), "it fails: no engine for this graph$"),
        (kernel(backward=refused), "it fails: no engine for this graph$"),
    ],
    ids=["across documents", "a row of a gradient", "nan", "forward refused", "backward refused"],
)
def test_a_wrong_kernel_is_named_once_and_the_next_is_used(card, wrong: Kernel, sentence: str):
    card(first=wrong, second=RIGHT)
    prefix = r"^cpu: attention by 'first' is not used \(bfloat16, head dim 64, packed rows of 256\): .*"
    with pytest.warns(UserWarning, match=prefix + sentence):
        assert attention._kernel("cuda", inputs(packed=True)) is RIGHT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attention._kernel("cuda", inputs(packed=True, length=512)) is RIGHT
    assert trusted.verdicts() == {
        f"{name!r} (cpu, bfloat16, head dim 64, packed rows of 256)": name == "second" for name in ("first", "second")
    }


def test_a_kernel_that_is_wrong_for_packed_rows_alone_is_used_for_others(card):
    across = kernel(forward=forward_across_documents)
    card(first=across)
    assert attention._kernel("cuda", inputs(packed=False)) is across
    with pytest.warns(UserWarning, match="packed rows"):
        assert attention._kernel("cuda", inputs(packed=True)) is None


def test_a_kernel_that_does_not_support_the_inputs_is_not_compared(card):
    def supports(inputs: Inputs) -> None:
        raise Unsupported("nothing is supported")

    card(first=kernel(forward=refused, supports=supports), second=RIGHT)
    assert attention._kernel("cuda", inputs(packed=True)) is RIGHT


def test_a_machine_without_a_card_trusts_every_kernel():
    assert cards() == []
    assert trusted.trusted("wrong", kernel(forward=refused), inputs(packed=True))


def test_the_comparison_does_not_see_the_mesh_guard_and_trace_of_its_caller(card):
    """It runs while a step is traced for a mesh, under the loop's guard against transfers."""
    card(first=kernel(forward=forward_across_documents), second=RIGHT)
    q, kv = (jax.random.normal(jax.random.key(0), (2, 128, n, 64), jnp.bfloat16) for n in (4, 2))
    segment_ids_bt = jnp.repeat(jnp.arange(4), 32)[None].repeat(2, 0)
    step = jax.jit(lambda *x: jax.vjp(lambda *y: attend(*y, segment_ids_bt=segment_ids_bt), *x)[1](x[0]))
    with (
        jax.set_mesh(Mesh(np.array(jax.devices("cpu")[:2]), ("data",))),
        jax.transfer_guard("disallow"),
        pytest.warns(UserWarning, match="'first' is not used"),
    ):
        jax.block_until_ready(step(q, kv, kv))
