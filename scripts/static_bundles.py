"""Reads what libtpu's compiler writes of a program: its bundles (VLIW instructions), and the loops and branches in it.

A bundle takes about one cycle when nothing stalls, so bundles times the number of times each is issued is a count of
work that is exact and repeatable. It is not a time: waiting for memory is not in it.
"""

import dataclasses
import os
import re
from pathlib import Path

_LINE = re.compile(r"^\s*(0x[0-9a-f]+|\d+)\s+(?:[A-Z]{2}:|:)")
_REGION = re.compile(r"(Start/End empty|Start|End) (?:empty )?region (\d+)")
_BRANCH = re.compile(r"sbr\.rel (?:\(!?%\w+\) )?target = \$region(\d+)")


def dump_to(folder: Path) -> None:
    """Makes the compiler write its passes to this folder; called before JAX is imported."""
    assert "LIBTPU_INIT_ARGS" not in os.environ, "LIBTPU_INIT_ARGS is set already"
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=true "
        f"--xla_mosaic_dump_to={folder}"
    )


@dataclasses.dataclass(frozen=True)
class Region:
    """Bundles from `start` up to `end`: the body of a loop, or what a branch may pass over."""

    kind: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program. Regions are in the order of their beginnings, outer before inner."""

    bundles: int
    regions: tuple[Region, ...]

    @property
    def kinds(self) -> str:
        return " ".join(region.kind for region in self.regions)

    def issued(self, times: list[float]) -> float:
        """Bundles issued, where each region is entered so many times in all, and what is in none once."""
        assert len(times) == len(self.regions), (self.kinds, times)
        total = 0.0
        for bundle in range(self.bundles):
            # Sorted outer before inner, the last region that holds a bundle is the innermost.
            inside = [n for region, n in zip(self.regions, times, strict=True) if region.start <= bundle < region.end]
            total += inside[-1] if inside else 1
        return total


def read(folder: Path, name: str) -> Program:
    """The program of the only custom call or fusion of that name."""
    files = [path for path in folder.glob(f"*-{name}*-final_bundles.txt") if "schedule-analysis" not in path.name]
    assert len(files) == 1, (name, [path.name for path in files])
    begins: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    last = 0
    for line in files[0].read_text().splitlines():
        if (number := _LINE.match(line)) is None:
            continue
        last = int(number.group(1), 16)
        for kind, region in _REGION.findall(line):
            if kind != "End":
                begins[region] = last
        branches += [(last, region) for region in _BRANCH.findall(line)]
    regions = []
    for bundle, target in branches:
        # On chips with two cores, one that has no part in the grid leaves at once, for an end that is not marked.
        if target not in begins:
            continue
        begin = begins[target]
        # A branch back closes a loop; a branch forward passes over what lies between.
        regions.append(Region("loop", begin, bundle + 1) if begin <= bundle else Region("if", bundle + 1, begin))
    return Program(last + 1, tuple(sorted(regions, key=lambda region: (region.start, -region.end))))
