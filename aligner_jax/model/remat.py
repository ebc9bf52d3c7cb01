"""Names of rematerialization: the results that a layer's forward pass keeps for its backward pass."""

import re

from aligner_jax.errors import InputError
from aligner_jax.files.fields import shown

type Remat = str
"""A name that `parts` takes: "full", "dots", "dots:N" or "none"."""

AUTO = "auto"
"""Name in a config for the least rematerialization that fits; `tasks.remat` finds it."""

POLICIES = ("full", "dots", "none")
"""Names of the policies of single layers; `layers.remat_policy` has their meaning."""

_SOME_LAYERS = re.compile(r"dots:([1-9][0-9]{0,5})")


def parts(remat: Remat, layers: range) -> list[tuple[range, str]]:
    """Splits layers into ranges, each with the name of its policy.

    Args:
      remat: a policy for all layers, or "dots:N": "dots" for the last N layers and "full" for those below.
      layers: indices of the layers; not empty.

    Raises:
      InputError: the name is unknown, or N is larger than the number of layers.
    """
    check_name(remat)
    if (some := _SOME_LAYERS.fullmatch(remat)) is None:
        return [(layers, remat)]
    kept = int(some[1])
    if kept > len(layers):
        raise InputError(f"remat {remat!r} keeps results of {kept} layers, but there are {len(layers)}: give fewer")
    split = layers.stop - kept
    both = [(range(layers.start, split), "full"), (range(split, layers.stop), "dots")]
    return [part for part in both if part[0]]


def check_name(remat: str, *, also: str = "") -> None:
    """Refuses a name that `parts` does not take.

    Args:
      also: further names, for the error message.

    Raises:
      InputError: the name is unknown.
    """
    if remat not in POLICIES and _SOME_LAYERS.fullmatch(remat) is None:
        names = ", ".join(POLICIES)
        raise InputError(f"remat {shown(remat)} is not one of {names}{also}, or dots:N with a number of layers")
