"""Every kernel against plain attention in float32: outputs and gradients over a grid of shapes and packed rows."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from aligner_jax.errors import InputError
from aligner_jax.model.attention import KERNELS, Prefix, attend
from aligner_jax.model.kernels import flash, plain, triton, xla
from aligner_jax.model.kernels.blocks import BlockSizes, default_blocks
from aligner_jax.model.kernels.kernel import Inputs, Kernel, Unsupported
from aligner_jax.model.kernels.operands import first_keys


@dataclasses.dataclass(frozen=True)
class Case:
    """One attention.

    Attributes:
      before: tokens of a joint prefix, ahead of the text's keys.
      tokens: length of a gated prefix; with `rows` each row has its own prefix.
      segments: lengths of the documents of each row.
    """

    length: int = 256
    before: int = 0
    heads: int = 2
    kv_heads: int = 2
    head_dim: int = 64
    tokens: int = 10
    rows: bool = False
    segments: tuple[tuple[int, ...], ...] | None = None
    dtype: str = "float32"
    span: int = 256
    query: int = 128
    chunk: int = 128

    @property
    def blocks(self) -> BlockSizes:
        return BlockSizes(
            forward_span=self.span, backward_span=self.span, query=self.query, key=self.query,
            forward_chunk=self.chunk, backward_chunk=self.chunk, diagonal=self.chunk, vmem_bytes=2**24,
        )  # fmt: skip


PACKED = ((100, 28, 128), (256,))
CASES = {
    "one head a group": Case(),
    "groups of 2": Case(heads=4),
    "groups of 3": Case(heads=3, kv_heads=1),
    "groups of 8": Case(heads=8, kv_heads=1),
    "head dim 128": Case(head_dim=128),
    "no prefix": Case(tokens=0),
    "2 tokens": Case(tokens=2),
    "16 tokens": Case(tokens=16),
    "300 tokens": Case(tokens=300),
    "prefixes of their own": Case(heads=4, rows=True),
    "packed": Case(segments=PACKED, heads=4),
    "packed, prefixes of their own": Case(segments=PACKED, rows=True),
    "a document returns": Case(segments=((64, 96, -64, 32), (128, 64, -64))),
    "one block": Case(span=256, query=256),
    "one block in chunks": Case(span=256, query=256, chunk=256),
    "spans of one block": Case(span=128),
    "spans of one block, groups of 2": Case(span=128, heads=4, kv_heads=2),
    "spans, packed": Case(length=512, span=256, segments=((300, 212), (10, 502)), heads=2, kv_heads=1),
    "three blocks": Case(length=384, span=384),
    "1,000 positions, packed": Case(length=1000, segments=((700, 300), (1, 999)), heads=4),
    "an odd length": Case(length=131, tokens=0),
    "head dim 96": Case(head_dim=96),
    "head dim 256": Case(head_dim=256, heads=4),
    "joint": Case(tokens=0, before=3),
    "joint, packed": Case(length=512, tokens=0, before=20, segments=((300, 212), (10, 502)), heads=4),
    "200 positions, a document returns": Case(length=200, tokens=2, segments=((70, 130), (10, 20, -30, 140)), heads=4),
    "513 positions, head dim 96": Case(length=513, head_dim=96, segments=((500, 13), (1, 512)), kv_heads=1),
    "joint of 300, 200 positions": Case(length=200, tokens=0, before=300, segments=((70, 130), (200,)), heads=4),
}
OF_THE_TPU_KERNEL = {
    "one block", "one block in chunks", "spans of one block", "spans of one block, groups of 2", "three blocks",
    "2 tokens", "16 tokens", "prefixes of their own",
}  # fmt: skip
"""Cases of block sizes and of the gated prefix, which the GPU kernel does not have."""
KERNELS_TRIED: dict[str, Callable[[Case], Kernel]] = {
    "xla": lambda case: xla.KERNEL,
    "pallas": lambda case: flash.kernel(blocks=case.blocks, interpret=True),
    "triton": lambda case: triton.kernel(interpret=True),
}
"""Kernels under test; each runs every case that it supports."""
TEXT, PREFIX = ("q_btnh", "k_bskh", "v_bskh"), ("prefix_k_bpkh", "gated_v_bpnh")


def make(case: Case):
    """Returns inputs as flash takes them, and a gradient of the output, with values that the dtype represents."""
    draw = np.random.default_rng(0).standard_normal
    b, p = 2, case.tokens
    rows = b if case.rows else 1
    shapes = {
        "q_btnh": (b, case.length, case.heads, case.head_dim),
        "k_bskh": (b, case.before + case.length, case.kv_heads, case.head_dim),
        "v_bskh": (b, case.before + case.length, case.kv_heads, case.head_dim),
    }
    if p:
        shapes["prefix_k_bpkh"] = (rows, p, case.kv_heads, case.head_dim)
        shapes["gated_v_bpnh"] = (rows, p, case.heads, case.head_dim)
    arrays = {name: jnp.asarray(draw(shape), case.dtype) for name, shape in shapes.items()}
    segments_bt = None
    if case.segments is not None:
        # A negative length continues the first document.
        rows_of_ids = [[(1 if n < 0 else i + 1, abs(n)) for i, n in enumerate(row)] for row in case.segments]
        segments_bt = jnp.asarray([[i for i, n in row for _ in range(n)] for row in rows_of_ids], jnp.int32)
    return arrays, segments_bt, jnp.asarray(draw(shapes["q_btnh"]), case.dtype)


def as_float32(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


@functools.cache
def expected(case: Case):
    """Returns the output and the gradients by name, in float32, of values that the case's dtype represents."""
    arrays, segments_bt, do = make(case)

    @jax.jit
    def run(arrays, segments_bt, do):
        o, pull = jax.vjp(lambda arrays: plain.attend(Inputs(**arrays, segment_ids_bt=segments_bt)), arrays)
        return {"o": o, **pull(do)[0]}

    return run(as_float32(arrays), segments_bt, as_float32(do))


def by_kernel(case: Case, kernel: Kernel):
    """Returns the kernel's output and gradients by name, and its output without residuals."""

    @jax.jit
    def run(arrays, segments_bt, do):
        inputs = Inputs(**arrays, segment_ids_bt=segments_bt)
        out = kernel.forward(inputs, True)
        assert out.text_o_btnh is not None
        assert out.log_bnt is not None
        d = kernel.backward(inputs, out.text_o_btnh, out.log_bnt, do)
        without_residuals = kernel.forward(inputs, False)
        assert (without_residuals.text_o_btnh, without_residuals.log_bnt) == (None, None)
        return {"o": out.o_btnh, **{name: getattr(d, name) for name in arrays}}, without_residuals.o_btnh

    return run(*make(case))


def supported() -> list[tuple[str, str]]:
    """Returns kernels and the names of the cases that they support."""

    def inputs(case: Case) -> Inputs:
        arrays, _, _ = jax.eval_shape(lambda: make(dataclasses.replace(case, segments=None)))
        return Inputs(**arrays)

    return [
        (kernel, name)
        for kernel, of in KERNELS_TRIED.items()
        for name, case in CASES.items()
        if of(case).supports(inputs(case)) and not (kernel == "triton" and name in OF_THE_TPU_KERNEL)
    ]


def error(actual, wanted) -> float:
    """Returns the largest difference, relative to the largest expected value."""
    return float(jnp.max(jnp.abs(actual.astype(jnp.float32) - wanted)) / jnp.max(jnp.abs(wanted)))


@pytest.mark.parametrize(("kernel", "name"), supported())
def test_float32_is_plain_attention(kernel: str, name: str):
    wanted = expected(CASES[name])
    actual, without_residuals = by_kernel(CASES[name], KERNELS_TRIED[kernel](CASES[name]))
    assert {key: array.shape for key, array in actual.items()} == {key: array.shape for key, array in wanted.items()}
    assert {key: e for key in wanted if not (e := error(actual[key], wanted[key])) <= 2e-5} == {}
    np.testing.assert_array_equal(without_residuals, actual["o"])


def test_the_grid_leaves_out_what_a_kernel_refuses_and_nothing_else():
    assert set(KERNELS) == {"tpu", "cuda"}
    assert {name for kernel, name in supported() if kernel == "xla"} == set(CASES)
    assert {name for kernel, name in supported() if kernel == "triton"} == set(CASES) - OF_THE_TPU_KERNEL
    assert set(CASES) - {name for kernel, name in supported() if kernel == "pallas"} == {
        "1,000 positions, packed", "an odd length", "head dim 96", "head dim 256", "joint", "joint, packed",
        "200 positions, a document returns", "513 positions, head dim 96", "joint of 300, 200 positions",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        *(
            ("pallas", name)
            for name in ("one head a group", "groups of 2", "head dim 128", "300 tokens", "spans, packed")
        ),
        *(("triton", name) for name in ("groups of 2", "200 positions, a document returns")),
    ],
)
@pytest.mark.parametrize("loud", [False, True], ids=["", "prefix louder than the text"])
def test_bfloat16_is_no_further_from_float32_than_twice_what_xla_is(kernel: str, name: str, loud: bool):
    case = dataclasses.replace(CASES[name], dtype="bfloat16")

    @jax.jit
    def errors():
        arrays, segments_bt, do = make(case)

        def xla(arrays):
            prefix_k, gated_v = (arrays[name] for name in PREFIX)
            # Each query head is its own kv head, so that the gated values need no gate.
            group = case.heads // case.kv_heads
            k, v, prefix_k = (jnp.repeat(x, group, 2) for x in (arrays["k_bskh"], arrays["v_bskh"], prefix_k))
            prefix = Prefix(prefix_k, gated_v, jnp.ones((gated_v.shape[0], case.heads)))
            return attend(arrays["q_btnh"], k, v, prefix, segment_ids_bt=segments_bt, implementation="xla")

        if loud:
            arrays["gated_v_bpnh"] *= 8
        wanted, pull = jax.vjp(
            lambda arrays: plain.attend(Inputs(**arrays, segment_ids_bt=segments_bt)), as_float32(arrays)
        )
        wanted = {"o": wanted, **pull(as_float32(do))[0]}
        by_xla, pull = jax.vjp(xla, arrays)
        by_xla = {"o": by_xla, **pull(do)[0]}
        tried, inputs = KERNELS_TRIED[kernel](case), Inputs(**arrays, segment_ids_bt=segments_bt)
        out = tried.forward(inputs, True)
        assert out.text_o_btnh is not None
        assert out.log_bnt is not None
        d = tried.backward(inputs, out.text_o_btnh, out.log_bnt, do)
        ours = {"o": out.o_btnh, **{name: getattr(d, name) for name in arrays}}

        def distance(arrays):
            return {key: jnp.linalg.norm(arrays[key].astype(jnp.float32) - wanted[key]) for key in wanted}

        return distance(ours), distance(by_xla)

    ours, by_xla = errors()
    assert {key: (ours[key], by_xla[key]) for key in ours if not ours[key] <= 2 * by_xla[key]} == {}


@pytest.mark.parametrize("name", ["groups of 2", "spans, packed"])
def test_with_the_tpus_memories_simulated(name: str):
    """The interpreter simulates transfers and semaphores, fills uninitialized memory with NaN, and detects races."""
    case = CASES[name]
    parameters = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    actual, _ = by_kernel(case, flash.kernel(blocks=case.blocks, interpret=parameters))
    wanted = expected(case)
    assert {key: e for key in wanted if not (e := error(actual[key], wanted[key])) <= 2e-5} == {}


@pytest.mark.parametrize("kernel", KERNELS_TRIED)
def test_the_same_twice(kernel: str):
    case = dataclasses.replace(CASES["packed"], dtype="bfloat16")
    first, second = (by_kernel(case, KERNELS_TRIED[kernel](case)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("implementation", ["auto", "pallas_interpret", "triton_interpret"])
@pytest.mark.parametrize("tokens", [0, 1, 10, 20])
def test_attend_has_the_same_gradients_by_every_implementation(implementation: str, tokens: int):
    case = Case(length=128, heads=4, tokens=tokens, segments=((100, 28), (128,)))
    arrays, segments_bt, do = make(dataclasses.replace(case, tokens=0))
    prefix = None
    if tokens:
        draw = np.random.default_rng(1).standard_normal
        shape = (1, tokens, case.kv_heads, case.head_dim)
        prefix = Prefix(*(jnp.asarray(draw(s), jnp.float32) for s in (shape, shape, (1, case.heads))))

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(implementation):
        def attention(arrays, prefix):
            return attend(**arrays, prefix=prefix, segment_ids_bt=segments_bt, implementation=implementation)

        o, pull = jax.vjp(attention, arrays, prefix)
        return o, *pull(do)

    actual, wanted = value_and_gradients(implementation), value_and_gradients("xla")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5 * max(1, np.abs(y).max())), actual, wanted)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"length": 200}, "a multiple of 128 positions, not 200"),
        ({"head_dim": 96}, "head dims 64 and 128, not 96"),
        ({"heads": 9, "kv_heads": 1}, "8 query heads a kv head, not 9"),
        ({"dtype": "float16"}, "float32 and bfloat16, not float16"),
        ({"tokens": 513}, "512 prefix tokens, not 513"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused_by_name_and_left_to_xla(broken: dict, reason: str):
    case = Case(**{"length": 128, "tokens": 0, **broken})
    arrays, _, _ = make(dataclasses.replace(case, tokens=0))
    shape = (1, case.tokens, case.kv_heads, case.head_dim)
    prefix = Prefix(jnp.ones(shape), jnp.ones(shape), jnp.ones((1, case.heads))) if case.tokens else None
    with pytest.raises(Unsupported, match=reason):
        attend(*arrays.values(), prefix, implementation="pallas")
    by_auto, by_xla = (attend(*arrays.values(), prefix, implementation=i) for i in ("auto", "xla"))
    np.testing.assert_array_equal(by_auto, by_xla)


def test_a_joint_softmax_is_left_to_xla():
    arrays, _, _ = make(Case(length=128))
    prefix = Prefix(arrays["prefix_k_bpkh"], arrays["prefix_k_bpkh"], jnp.ones((1, 2)), joint=True)
    text = [arrays[name] for name in TEXT]
    with pytest.raises(Unsupported, match="no joint softmax"):
        attend(*text, prefix, implementation="pallas_interpret")
    np.testing.assert_allclose(attend(*text, prefix), attend(*text, prefix, implementation="xla"), atol=2e-5)


def numbers_kept(length: int, head_dim: int, before: int = 0) -> tuple[int, int]:
    """Returns the sizes of attention's residuals, and of its inputs, output and denominators together."""
    q, kv = (jax.ShapeDtypeStruct((1, length, heads, head_dim), jnp.float32) for heads in (4, 2))
    prefix = None
    if before:
        rows = jax.ShapeDtypeStruct((1, before, 2, head_dim), jnp.float32)
        prefix = Prefix(rows, rows, jax.ShapeDtypeStruct((1, 4), jnp.float32), joint=True)
    kept = jax.eval_shape(lambda *inputs: jax.vjp(attend, *inputs)[1], q, kv, kv, prefix)
    return sum(x.size for x in jax.tree.leaves(kept)), 2 * (q.size + kv.size) + 4 * before * head_dim + 4 * length


@pytest.mark.parametrize(
    ("length", "head_dim", "before"),
    [(1024, 64, 0), (1000, 64, 0), (1024, 96, 0), (1024, 256, 0), (1000, 8, 0), (1000, 64, 20)],
)
def test_the_backward_pass_keeps_no_weights_of_any_shape(length: int, head_dim: int, before: int):
    kept, least = numbers_kept(length, head_dim, before)
    assert kept == least


@pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm", "cpu"])
@pytest.mark.parametrize(("length", "head_dim"), [(1024, 64), (1000, 64), (1024, 96)])
def test_the_kernel_is_that_of_the_platform_of_the_lowering(platform: str, length: int, head_dim: int):
    q, kv = (jax.ShapeDtypeStruct((1, length, heads, head_dim), jnp.float32) for heads in (4, 2))
    traced = jax.jit(lambda q, k, v: jax.vjp(attend, q, k, v)[1](q)).trace(q, kv, kv)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("tpu_custom_call" in program) == (platform == "tpu" and (length, head_dim) == (1024, 64))


def test_blocks_of_keys_that_no_query_may_see_are_passed_over():
    segments_b1t = jnp.repeat(jnp.asarray([[1, 1, 2, 2, 3, 0], [2, 1, 2, 2, 1, 1]]), 128, axis=1)[:, None]
    # In the second row, blocks between two of the same document are computed and masked.
    wanted = [[0, 0, 256, 256, 512, 640], [0, 128, 0, 0, 128, 128]]
    np.testing.assert_array_equal(first_keys(segments_b1t, 2, 768, 128), wanted)
    np.testing.assert_array_equal(first_keys(None, 2, 256, 128), [[0, 0], [0, 0]])


@pytest.mark.parametrize("length", [128, 384, 640, 896, 1024, 4096, 32768])
@pytest.mark.parametrize("generation", [None, "v4", "v5e", "v5p", "v6e", "tpu7x"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_default_blocks_fit_every_length_of_a_multiple_of_128(length: int, generation: str | None, dtype: str):
    blocks = default_blocks(length, jnp.dtype(dtype), generation)
    blocks.check_length(length)
    if dtype == "bfloat16":
        assert blocks.query == {384: 384, 640: 128, 896: 128}.get(length, min(length, 512))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"query": 100}, "query is 100, and must be a positive multiple of 128"),
        ({"key": 0}, "key is 0"),
        ({"query": 384, "key": 384}, r"query \(384\) does not divide forward_span \(512\)"),
        ({"diagonal": 384}, r"diagonal \(384\) does not divide query \(256\)"),
    ],
)
def test_blocks_that_do_not_fit_together_are_refused(changes: dict, sentence: str):
    sizes = {"forward_span": 512, "backward_span": 512, "query": 256, "key": 256, "vmem_bytes": 2**24}
    sizes |= {"forward_chunk": 128, "backward_chunk": 128, "diagonal": 128}
    BlockSizes(**sizes)
    with pytest.raises(InputError, match=sentence):
        BlockSizes(**{**sizes, **changes})


def test_spans_that_do_not_divide_the_row_are_refused():
    arrays, _, _ = make(Case(length=384, tokens=0))
    with pytest.raises(InputError, match=r"forward_span \(256\) does not divide the row's 384 positions"):
        flash.forward(**arrays, blocks=Case(span=256).blocks, interpret=True)
