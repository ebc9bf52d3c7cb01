"""Programs lowered for CUDA on a machine without a card hold the GPU kernels; those for other platforms hold none."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

import aligner_jax as aj
from aligner_jax.decoding import programs
from aligner_jax.decoding.engine_options import TOKENS_PER_CALL
from aligner_jax.decoding.state import prefill
from aligner_jax.model.attention import Prefix, attend
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import abstract_params
from aligner_jax.objectives.batch import Batch, abstract
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.peft import bind, init_adapter
from aligner_jax.runtime import optim
from aligner_jax.runtime.config import OptimConfig

H100 = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu"))
"""The card that Triton's kernels are lowered for. On a machine with a card this is the card."""
FORWARD, BACKWARD, TRITON = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward", "__gpu$xla.gpu.triton"
MASKED = {"__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"}
LENGTH = 256
CONFIG = LlamaConfig(
    vocab_size=40, d_model=32, d_mlp=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=64, context_length=LENGTH
)

# JAX means to remove Triton, and says so at each kernel that it lowers.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")


def kernels(function: Callable, *arguments, platform: str = "cuda") -> set[str]:
    """Returns names of the attention kernels of a program that is lowered for a platform."""
    with jax.sharding.use_abstract_mesh(H100):
        program = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    return set(re.findall(r"custom_call @(__cudnn\$\w+|__gpu\$xla\.gpu\.triton|tpu_custom_call)\b", program))


def ids(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@pytest.fixture(scope="module")
def params():
    return abstract_params(CONFIG, "bfloat16")


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize(("num_tokens", "remat"), [(1, "full"), (10, "dots"), (10, "none")])
def test_the_training_step(params, num_tokens: int, remat: str, packed: bool):
    adapter = init_adapter("aligner", CONFIG, num_tokens=num_tokens, start_layer=1)
    optimizer = optim.make_optimizer(OptimConfig(), 10)
    step = make_step(adapter, optimizer, config=CONFIG, remat=remat)
    state = jax.eval_shape(lambda: init_state(adapter, optimizer))
    arguments = state, params, abstract(Batch, {"b": 2, "t": LENGTH}, packed=packed)
    assert kernels(step, *arguments) == ({TRITON} if packed else {FORWARD, BACKWARD})
    assert kernels(step, *arguments, platform="cpu") == set()
    assert kernels(step, *arguments, platform="tpu") == {"tpu_custom_call"}


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_gradients_of_the_public_function(params, packed: bool):
    adapter = init_adapter("aligner", CONFIG, num_tokens=10, start_layer=1)

    def gradient(trainable, params, tokens_bt, segments_bt):
        def total(trainable):
            of = adapter.replace(trainable=trainable)
            options = {"segment_ids_bt": segments_bt, "positions_bt": tokens_bt} if packed else {}
            return jnp.sum(aj.apply(params, of, tokens_bt, config=CONFIG, **options).astype(jnp.float32))

        return jax.grad(total)(trainable)

    arguments = adapter.trainable, params, ids(2, LENGTH), ids(2, LENGTH)
    assert kernels(gradient, *arguments) == ({TRITON} if packed else {FORWARD, BACKWARD})
    assert kernels(gradient, *arguments, platform="cpu") == set()


def test_prefill(params):
    adapter = init_adapter("aligner", CONFIG, num_tokens=10, start_layer=1)

    def run(params, tokens_bt, lengths_b):
        return prefill(params, bind(adapter, params, CONFIG), tokens_bt, lengths_b, config=CONFIG, slots=LENGTH)

    arguments = params, ids(2, LENGTH), ids(2)
    assert kernels(run, *arguments) == {FORWARD}
    assert kernels(run, *arguments, platform="cpu") == set()


@pytest.mark.parametrize(("count", "carried"), [(1, False), (TOKENS_PER_CALL, True)])
def test_no_loop_carries_weights_if_a_program_decodes_one_token(params, count: int, carried: bool):
    bound = programs.bind_shared.eval_shape(params, None, config=CONFIG)
    state = programs.make_state.eval_shape(
        config=CONFIG, batch_size=2, slots=LENGTH, dtype="bfloat16", first_position=0, alternatives=None,
        has_penalty=False, capacity=None,
    )  # fmt: skip
    traced = programs.decode.trace(params, bound, state, ids(2), ids(1), config=CONFIG, count=count)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    loops = [line for line in program.splitlines() if "stablehlo.while" in line]
    weights = {f"tensor<{'x'.join(map(str, leaf.shape))}xbf16>" for leaf in jax.tree.leaves(params)}
    assert any(weight in line for line in loops for weight in weights) == carried


@pytest.mark.parametrize(
    ("changed", "implementation", "expected"),
    [
        ({}, "auto", {FORWARD, BACKWARD}),
        ({"packed": True}, "auto", {TRITON}),
        ({"packed": True}, "cudnn", MASKED),
        ({"dtype": "float16"}, "auto", {FORWARD, BACKWARD}),
        ({"dtype": "float32"}, "auto", {TRITON}),
        ({"head_dim": 256}, "auto", {TRITON}),
        ({"before": 3}, "auto", {TRITON}),
        ({"head_dim": 512}, "auto", set()),
    ],
)
def test_the_kernel_is_the_first_that_supports_the_inputs(changed: dict, implementation: str, expected: set[str]):
    def gradients(dtype="bfloat16", head_dim=64, packed=False, before=0):
        q, kv = (jax.ShapeDtypeStruct((2, 200, n, head_dim), dtype) for n in (4, 2))
        prefix = None
        if before:
            rows = jax.ShapeDtypeStruct((1, before, 2, head_dim), dtype)
            prefix = Prefix(rows, rows, jax.ShapeDtypeStruct((1, 4), jnp.float32), joint=True)

        def run(q, k, v, prefix, segments_bt):
            attention = lambda q, k, v: attend(  # noqa: E731
                q, k, v, prefix, segment_ids_bt=segments_bt, implementation=implementation
            )
            return jax.vjp(attention, q, k, v)[1](q)

        return run, q, kv, kv, prefix, ids(2, 200) if packed else None

    assert kernels(*gradients(**changed)) == expected
