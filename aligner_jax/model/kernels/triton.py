"""Flash attention for GPUs (Pallas, lowered by Triton).

Flash attention (arXiv 2205.14135; backward pass: arXiv 2307.08691) keeps scores on the chip. Rows have any length and
segment ids any order; keys before the text's are a first loop over keys without a mask. The gated prefix stays outside:
for one token it is a constant, and for a few one small product (`xla.with_gated_prefix`).

Products are summed in float32. Those of float32 operands have JAX's default precision, as XLA's own have: TF32 on cards
that have it, unless `jax.default_matmul_precision` says otherwise.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.model.kernels import triton_forward, xla
from aligner_jax.model.kernels.cards import check_capability, target_capability
from aligner_jax.model.kernels.kernel import Inputs, Kernel, Unsupported
from aligner_jax.model.kernels.triton_backward import key_gradients, query_gradient
from aligner_jax.model.kernels.triton_tiles import operands_of

DTYPES = ("float32", "bfloat16", "float16")
MAX_HEAD_DIM = 256
"""Largest size of a head whose tiles fit the registers of a GPU."""


def kernel(*, interpret: bool = False) -> Kernel:
    """Returns the functions of this file as a `Kernel`.

    Args:
      interpret: True runs the arithmetic on any platform.
    """

    def run_forward(*inputs: Array) -> tuple[Array, Array]:
        return forward(*inputs, interpret=interpret)

    def run_backward(*inputs: Array) -> tuple[Array, Array, Array]:
        return backward(*inputs, interpret=interpret)

    return xla.with_gated_prefix(check_supported if interpret else _check_compiled, run_forward, run_backward)


def check_supported(inputs: Inputs) -> None:
    """Raises Unsupported, with the reason, if the kernel's arithmetic does not support these inputs."""
    dtypes, head_dim = {x.dtype.name for x in inputs[:3]}, inputs.q_btnh.shape[3]
    if len(dtypes) > 1:
        raise Unsupported(
            f"the Triton attention kernel takes queries, keys and values of one dtype, not {', '.join(sorted(dtypes))}"
        )
    if not dtypes <= set(DTYPES):
        raise Unsupported(f"the Triton attention kernel takes {', '.join(DTYPES)}, not {dtypes.pop()}")
    if head_dim > MAX_HEAD_DIM:
        raise Unsupported(f"the Triton attention kernel takes head dims up to {MAX_HEAD_DIM}, not {head_dim}")


def _check_compiled(inputs: Inputs) -> None:
    check_supported(inputs)
    # Lowering asks for the kind of the card. Without one it would fail, even in a branch for another platform.
    if target_capability() is None:
        raise Unsupported(
            "the Triton attention kernel is compiled for one kind of GPU, and neither is there one here, nor does the "
            "abstract device of the mesh in context name one"
        )
    check_capability("the Triton attention kernel")


def forward(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    segment_ids_bt: Int[Array, "b t"] | None,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "b t n h"], Float[Array, "b n t"]]:
    """Returns the same as `xla.attend_causally`: the output, and the log-denominators of its softmax in float32."""
    return triton_forward.forward(operands_of(q_btnh, k_bskh, v_bskh, segment_ids_bt), interpret=interpret)


def backward(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b s k h"],
    v_bskh: Float[Array, "b s k h"],
    segment_ids_bt: Int[Array, "b t"] | None,
    o_btnh: Float[Array, "b t n h"],
    log_bnt: Float[Array, "b n t"],
    do_btnh: Float[Array, "b t n h"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "b t n h"], Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """Returns the gradients of queries, keys and values, from the inputs and results of `forward`."""
    operands, do_btnh = operands_of(q_btnh, k_bskh, v_bskh, segment_ids_bt), do_btnh.astype(q_btnh.dtype)
    delta_bnt = jnp.einsum("btnh,btnh->bnt", o_btnh.astype(jnp.float32), do_btnh.astype(jnp.float32))
    arguments = operands, do_btnh, log_bnt, delta_bnt
    dq_btnh = query_gradient(*arguments, interpret=interpret)
    dk_bskh, dv_bskh = key_gradients(*arguments, interpret=interpret)
    if operands.before_k is not None:
        before = key_gradients(*arguments, before=True, interpret=interpret)
        dk_bskh, dv_bskh = (jnp.concatenate(pair, axis=1) for pair in zip(before, (dk_bskh, dv_bskh), strict=True))
    return dq_btnh, dk_bskh, dv_bskh
