"""The record of an attention implementation, and its inputs (shape legend: llama.py)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from aligner_jax.errors import InputError


class Unsupported(InputError):
    """The kernel cannot take these shapes or types; the message says why."""


class Inputs(NamedTuple):
    """One attention, with queries and keys already rotated.

    Keys and values may have s - t positions more than the queries, ahead of the text: those of a prefix in one softmax
    with the text, which every query sees.

    Attributes:
      prefix_k_bpkh: the keys of a prefix in a softmax of its own; a leading axis of 1 is shared by all rows.
      gated_v_bpnh: its values for each query head, times the head's gate.
    """

    q_btnh: Float[Array, "b t n h"]
    k_bskh: Float[Array, "b s k h"]
    v_bskh: Float[Array, "b s k h"]
    segment_ids_bt: Int[Array, "b t"] | None = None
    prefix_k_bpkh: Float[Array, "#b p k h"] | None = None
    gated_v_bpnh: Float[Array, "#b p n h"] | None = None


class Outputs(NamedTuple):
    """The heads' outputs, and, where the backward pass asks for them, its residuals.

    Attributes:
      text_o_btnh: the text's part of the output.
      log_bnt: the logarithms of its softmax's denominators, float32.
    """

    o_btnh: Float[Array, "b t n h"]
    text_o_btnh: Float[Array, "b t n h"] | None = None
    log_bnt: Float[Array, "b n t"] | None = None


class Gradients(NamedTuple):
    """The gradients of the arrays of `Inputs`, each in its dtype."""

    q_btnh: Float[Array, "b t n h"]
    k_bskh: Float[Array, "b s k h"]
    v_bskh: Float[Array, "b s k h"]
    prefix_k_bpkh: Float[Array, "#b p k h"] | None = None
    gated_v_bpnh: Float[Array, "#b p n h"] | None = None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One implementation of attention. All leave the same residuals, so a platform may choose each pass's.

    Attributes:
      check_supported: raises `Unsupported`, with the reason, where the kernel cannot take the inputs' shapes or types.
      forward: maps inputs and `residuals` (True: wanted) to outputs.
      backward: maps inputs, text_o_btnh, log_bnt and the output's gradient to gradients.
    """

    check_supported: Callable[[Inputs], None]
    forward: Callable[[Inputs, bool], Outputs]
    backward: Callable[[Inputs, Array, Array, Array], Gradients]

    def supports(self, inputs: Inputs) -> bool:
        """Returns True if the kernel takes these inputs."""
        try:
            self.check_supported(inputs)
        except Unsupported:
            return False
        return True
