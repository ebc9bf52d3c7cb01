"""Flash attention of cuDNN, for NVIDIA cards of compute capability 8.0 and later (shape legend: llama.py).

XLA compiles a custom call by name into a cuDNN graph. The calls are made here, with `jax.ffi.ffi_call`, and not by
`jax.nn.dot_product_attention`, for two reasons. Its log-denominators are rounded to the dtype of the queries, which is
too coarse for a backward pass. And it reads the local card's version of cuDNN while it is traced, so that it cannot be
traced or compiled on a machine without a card. The functions below that the former call are private, and their
arguments change between releases.

Packed rows take a mask over all pairs of positions, which is right for any segment ids. cuDNN's own packed layout
needs a static maximum of documents per row, ids that do not return, and a card of the generation of the H100.
"""

import json

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aligner_jax.model.kernels.cards import check_capability
from aligner_jax.model.kernels.kernel import Inputs, Kernel, Unsupported
from aligner_jax.model.kernels.xla import with_gated_prefix

MAX_HEAD_DIM = 128
"""Largest head dim on every generation of cards."""
DETERMINISTIC = True
"""True sums the gradients of queries in a fixed order, so that a resumed run repeats the run it continues."""
FORWARD, FORWARD_MASKED = "__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax"
BACKWARD, BACKWARD_MASKED = "__cudnn$fmhaSoftmaxBackward", "__cudnn$fmhaScaleBiasSoftmaxBackward"
"""Names of the custom calls."""

_ROW_MAJOR_BTNH = (0, 2, 1, 3)
"""Layout, from the slowest axis to the fastest, of a result of shape [b, n, t, h] with positions before heads."""
_MASKED = {"bfloat16": -(2.0**41), "float16": -(2.0**15)}
"""Bias of a masked pair. cuDNN subtracts two of them, so these are not the least numbers of the dtype."""
_DOTS_FORWARD = {
    "bmm1_dot_dimension_numbers": ((3, 3), ((0, 2), (0, 2))),
    "bmm2_dot_dimension_numbers": ((3, 1), ((0, 1), (0, 2))),
}
_DOTS_BACKWARD = {
    "bmm1_grad_gemm1_dot_dimension_numbers": ((2, 1), ((0, 1), (0, 2))),
    "bmm1_grad_gemm2_dot_dimension_numbers": ((3, 1), ((0, 1), (0, 2))),
    "bmm2_grad_gemm1_dot_dimension_numbers": ((2, 1), ((0, 1), (0, 2))),
    "bmm2_grad_gemm2_dot_dimension_numbers": ((3, 3), ((0, 2), (0, 2))),
}
"""Contracting and batch axes, of left and right operand, of the products that the calls fuse."""


def check_supported(inputs: Inputs) -> None:
    """Raises `Unsupported`, with the reason, if cuDNN does not support the inputs."""
    (_, t, _, h), s, dtype = inputs.q_btnh.shape, inputs.k_bskh.shape[1], str(inputs.q_btnh.dtype)
    if dtype not in _MASKED:
        raise Unsupported(f"cuDNN's attention supports bfloat16 and float16, not {dtype}")
    if {inputs.k_bskh.dtype, inputs.v_bskh.dtype} != {inputs.q_btnh.dtype}:
        raise Unsupported("cuDNN's attention supports queries, keys and values of one dtype")
    if h > MAX_HEAD_DIM or h % 8:
        raise Unsupported(f"cuDNN's attention supports head dims up to {MAX_HEAD_DIM} that 8 divides, not {h}")
    if s != t:
        raise Unsupported("cuDNN's attention has no joint softmax over prefix and text")
    if inputs.segment_ids_bt is not None and t % 2:
        raise Unsupported(f"cuDNN's attention supports packed rows of an even length, not {t}")
    # Unlike Triton's, the calls do not depend on the card, so a program may be lowered before it is known.
    check_capability("cuDNN's attention")


def attend_causally(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b t k h"],
    v_bskh: Float[Array, "b t k h"],
    segment_ids_bt: Int[Array, "b t"] | None,
) -> tuple[Float[Array, "b t n h"], Float[Array, "b n t"]]:
    """Returns causal self-attention and the log-denominators of its softmax, float32, as `xla.attend_causally` does."""
    b, t, n, h = q_btnh.shape
    bias = _bias(segment_ids_bt, q_btnh.dtype)
    o_bnth, log_bnt = _call(
        FORWARD_MASKED if bias else FORWARD,
        [q_btnh, k_bskh, v_bskh, *bias],
        [jax.ShapeDtypeStruct((b, n, t, h), q_btnh.dtype), jax.ShapeDtypeStruct((b, n, t), jnp.float32)],
        _config(q_btnh, _DOTS_FORWARD),
    )
    return o_bnth.swapaxes(1, 2), log_bnt


def attend_causally_backward(
    q_btnh: Float[Array, "b t n h"],
    k_bskh: Float[Array, "b t k h"],
    v_bskh: Float[Array, "b t k h"],
    segment_ids_bt: Int[Array, "b t"] | None,
    o_btnh: Float[Array, "b t n h"],
    log_bnt: Float[Array, "b n t"],
    do_btnh: Float[Array, "b t n h"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t k h"], Float[Array, "b t k h"]]:
    """Returns the gradients of queries, keys and values, from the inputs and results of `attend_causally`."""
    bias = _bias(segment_ids_bt, q_btnh.dtype)
    gradients = _call(
        BACKWARD_MASKED if bias else BACKWARD,
        [q_btnh, k_bskh, v_bskh, log_bnt, do_btnh.astype(q_btnh.dtype), *bias, o_btnh],
        [
            jax.ShapeDtypeStruct((x.shape[0], x.shape[2], x.shape[1], x.shape[3]), x.dtype)
            for x in (q_btnh, k_bskh, v_bskh)
        ],
        _config(q_btnh, _DOTS_BACKWARD) | {"force_deterministic": DETERMINISTIC},
    )
    dq_btnh, dk_bskh, dv_bskh = (x.swapaxes(1, 2) for x in gradients)
    return dq_btnh, dk_bskh, dv_bskh


def kernel() -> Kernel:
    """Returns these functions as a `Kernel`."""
    return with_gated_prefix(check_supported, attend_causally, attend_causally_backward)


def _bias(segment_ids_bt: Array | None, dtype) -> list[Array]:
    """Returns a bias [b, 1, t, s] that masks pairs of different segments; nothing if rows are not packed."""
    if segment_ids_bt is None:
        return []
    same_b1ts = segment_ids_bt[:, None, :, None] == segment_ids_bt[:, None, None, :]
    return [jnp.where(same_b1ts, 0, _MASKED[str(dtype)]).astype(dtype)]


def _call(name: str, operands: list[Array], results: list[jax.ShapeDtypeStruct], config: dict) -> list[Array]:
    """Calls cuDNN. Results of shape [b, n, t, h] are written with positions before heads, as the operands are."""
    workspace = jax.ShapeDtypeStruct((0,), jnp.uint8)
    call = jax.ffi.ffi_call(
        name,
        [*results, workspace],
        vmap_method="sequential",
        output_layouts=[*(_ROW_MAJOR_BTNH if len(x.shape) == 4 else None for x in results), None],
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": config}),
    )
    return list(call(*operands))[: len(results)]


def _config(q_btnh: Array, dots: dict) -> dict:
    """Returns the fields that the calls have in common, with XLA's names (`CudnnfMHABackendConfig`)."""
    b, t, n, h = q_btnh.shape
    products = {
        name: {
            "lhs_contracting_dimensions": [str(left)],
            "rhs_contracting_dimensions": [str(right)],
            "lhs_batch_dimensions": [str(axis) for axis in left_batch],
            "rhs_batch_dimensions": [str(axis) for axis in right_batch],
        }
        for name, ((left, right), (left_batch, right_batch)) in dots.items()
    }
    return products | {
        "algorithm": {
            "algo_id": "0",
            "math_type": "TENSOR_OP_MATH",
            "tuning_knobs": {"17": "1", "24": "0"},
            "is_cudnn_frontend": True,
            "workspace_size": "0",
        },
        "fmha_scale": h**-0.5,
        "intermediate_tensor_shape": {
            "element_type": {"bfloat16": "BF16", "float16": "F16"}[str(q_btnh.dtype)],
            "dimensions": [str(size) for size in (b, n, t, t)],
            "layout": {"minor_to_major": ["3", "2", "1", "0"]},
            "is_dynamic_dimension": [False] * 4,
        },
        "is_flash_attention": True,
        "mask_type": "CAUSAL",
        "dropout_rate": 0.0,
        "seed": 0,
        "sliding_window_length": 0,
        "max_seg_per_batch": 1,
        "is_paged_attention": False,
    }
