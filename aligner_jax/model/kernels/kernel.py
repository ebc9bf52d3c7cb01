"""`Kernel`, the record of an attention implementation, and its inputs and outputs (shape legend: llama.py)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from aligner_jax.errors import InputError


class Unsupported(InputError):
    """The kernel does not support the inputs' shapes or dtypes; the message says why."""


class Inputs(NamedTuple):
    """Inputs of attention; queries and keys are already rotated.

    Attributes:
      q_btnh: queries.
      k_bskh, v_bskh: keys and values. If s > t, the first s - t positions are a prefix that shares the text's softmax;
        every query attends to them.
      segment_ids_bt: positions attend only to positions with the same segment id.
      prefix_k_bpkh: keys of a prefix with a softmax of its own; a leading axis of 1 is shared by all rows.
      gated_v_bpnh: values of that prefix for each query head, multiplied by the head's gate.
    """

    q_btnh: Float[Array, "b t n h"]
    k_bskh: Float[Array, "b s k h"]
    v_bskh: Float[Array, "b s k h"]
    segment_ids_bt: Int[Array, "b t"] | None = None
    prefix_k_bpkh: Float[Array, "#b p k h"] | None = None
    gated_v_bpnh: Float[Array, "#b p n h"] | None = None


class Outputs(NamedTuple):
    """Outputs of the heads, and optionally the residuals of the backward pass.

    Attributes:
      o_btnh: output of text and prefix together.
      text_o_btnh: residual; the text's part of the output.
      log_bnt: residual; logarithms of the denominators of the text's softmax, float32.
    """

    o_btnh: Float[Array, "b t n h"]
    text_o_btnh: Float[Array, "b t n h"] | None = None
    log_bnt: Float[Array, "b n t"] | None = None


class Gradients(NamedTuple):
    """Gradients of the arrays of `Inputs`, each in its dtype."""

    q_btnh: Float[Array, "b t n h"]
    k_bskh: Float[Array, "b s k h"]
    v_bskh: Float[Array, "b s k h"]
    prefix_k_bpkh: Float[Array, "#b p k h"] | None = None
    gated_v_bpnh: Float[Array, "#b p n h"] | None = None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One implementation of attention. All have the same residuals, so forward and backward may be different kernels.

    Attributes:
      check_supported: raises `Unsupported`, with the reason, if the kernel does not support the inputs.
      forward: maps inputs and a flag to outputs; True returns the residuals.
      backward: maps inputs, text_o_btnh, log_bnt and the output's cotangent to gradients.
    """

    check_supported: Callable[[Inputs], None]
    forward: Callable[[Inputs, bool], Outputs]
    backward: Callable[[Inputs, Array, Array, Array], Gradients]

    def supports(self, inputs: Inputs) -> bool:
        """Returns True if the kernel supports these inputs."""
        try:
            self.check_supported(inputs)
        except Unsupported:
            return False
        return True
