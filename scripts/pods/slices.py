"""TPU slices by the names of the planner and of Google Cloud: chips, hosts, machine types and node labels."""

import dataclasses
import math
import re

from aligner_jax.planning.topology_names import SLICES, topology_name


class Mistake(ValueError):
    """A flag that cannot be used; the message is one sentence that says which, and what to give."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """Names and sizes that Google Cloud gives the slices of one TPU generation.

    Attributes:
      node_label: value of the node label cloud.google.com/gke-tpu-accelerator.
      machine: machine type of a node, with the number of its chips left out.
      type_name: first part of an accelerator type, such as "v5litepod" of "v5litepod-16".
      cores: TensorCores of a chip, which accelerator types of some generations count in place of chips.
      runtime: runtime of a TPU VM for JAX.
      whole_host: chips of the largest machine, which holds a slice of that size alone.
      flat: True if topologies have two dimensions, False if three.
    """

    node_label: str
    machine: str
    type_name: str
    cores: int
    runtime: str
    whole_host: int
    flat: bool


GENERATIONS = {
    "v4": Generation("tpu-v4-podslice", "ct4p-hightpu-{}t", "v4", 2, "tpu-ubuntu2204-base", 4, False),
    "v5e": Generation("tpu-v5-lite-podslice", "ct5lp-hightpu-{}t", "v5litepod", 1, "v2-alpha-tpuv5-lite", 8, True),
    "v5p": Generation("tpu-v5p-slice", "ct5p-hightpu-{}t", "v5p", 2, "v2-alpha-tpuv5", 4, False),
    "v6e": Generation("tpu-v6e-slice", "ct6e-standard-{}t", "v6e", 1, "v2-alpha-tpuv6e", 8, True),
    "tpu7x": Generation("tpu7x", "tpu7x-standard-{}t", "tpu7x", 2, "v2-alpha-tpu7-ubuntu2404", 4, False),
}
"""TPU generations by the planner's name."""

FLAT = tuple(SLICES["v5e"][1].values())
"""Topologies of v5e and v6e."""
SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
"""Topologies of the other generations below 4x4x4, beyond which every dimension is a multiple of 4."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """One TPU slice.

    Attributes:
      generation: key of `GENERATIONS`.
      shape: chips in each dimension, as in "4x4".
      chips_per_host: chips of one host.
    """

    generation: str
    shape: str
    chips_per_host: int

    @property
    def chips(self) -> int:
        return math.prod(int(size) for size in self.shape.split("x"))

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def topology(self) -> str:
        """Name of the slice for `aligner_jax.compile --topology`."""
        return f"{self.generation}:{self.shape}"

    @property
    def node_label(self) -> str:
        return GENERATIONS[self.generation].node_label

    @property
    def machine_type(self) -> str:
        return GENERATIONS[self.generation].machine.format(self.chips_per_host)

    @property
    def accelerator_type(self) -> str:
        """Name for gcloud and XPK, such as "v5litepod-16" for 16 chips, or "v5p-32" for the 32 cores of 16."""
        generation = GENERATIONS[self.generation]
        return f"{generation.type_name}-{self.chips * generation.cores}"

    @property
    def runtime(self) -> str:
        return GENERATIONS[self.generation].runtime


def parse_slice(text: str, chips_per_host: int | None = None) -> Slice:
    """Returns the slice that a topology names, "v5e:4x4", or an accelerator type of v5e or v6e, "v5litepod-16".

    Args:
      text: name of the slice.
      chips_per_host: chips of a host; None takes machines of 4 chips, of which slices of several hosts are made.

    Raises:
      Mistake: there is no such slice, or no such machine for it.
    """
    if match := re.fullmatch(r"(v5litepod|v5e|v6e)-(\d+)", text):
        known = topology_name(text)
        if known is None:
            raise Mistake(
                f"--topology={text}: slices of {match[1]} have {', '.join(map(str, SLICES[match[1]][1]))} chips"
            )
        text = known
    name, _, shape = text.partition(":")
    if name not in GENERATIONS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise Mistake(
            f"--topology={text} is no slice; they are called v5e:4x4, v6e:8x8, v5p:2x4x4, v4:2x2x1 or tpu7x:2x2x1"
        )
    generation = GENERATIONS[name]
    if not (shape in FLAT if generation.flat else _is_cube(shape)):
        known = ", ".join(FLAT if generation.flat else (*SMALL_CUBES, "4x4x4", "4x4x8 and so on"))
        raise Mistake(f"--topology={text}: {name} has no slice of that shape; there are {known}")
    chips = math.prod(int(size) for size in shape.split("x"))
    if chips_per_host is None:
        chips_per_host = min(chips, 4)
    if chips_per_host not in (min(chips, 4), *((8,) if chips == generation.whole_host == 8 else ())):
        also = " or 8" if chips == generation.whole_host == 8 else ""
        raise Mistake(f"--chips_per_host={chips_per_host}: hosts of {text} have {min(chips, 4)}{also} chips")
    return Slice(name, shape, chips_per_host)


def _is_cube(shape: str) -> bool:
    sizes = [int(size) for size in shape.split("x")]
    is_large = len(sizes) == 3 and sizes == sorted(sizes) and all(size > 0 and size % 4 == 0 for size in sizes)
    return shape in SMALL_CUBES or is_large
