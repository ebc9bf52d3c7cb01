"""Reads the TPU compiler's dump of a program: its bundles (VLIW instructions), loops and branches.

A bundle takes about one cycle when nothing stalls. So the number of issued bundles is an exact and repeatable count of
work. It is not a time: waiting for memory is not included.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

_LINE = re.compile(r"^\s*(0x[0-9a-f]+|\d+)\s+(?:[A-Z]{2}:|:)")
_REGION = re.compile(r"(Start/End empty|Start|End) (?:empty )?region (\d+)")
_BRANCH = re.compile(r"sbr\.rel (?:\(!?%\w+\) )?target = \$region(\d+)")


def dump_to(folder: Path) -> None:
    """Makes the compiler write its passes to this folder; must be called before JAX is imported."""
    assert "LIBTPU_INIT_ARGS" not in os.environ, "LIBTPU_INIT_ARGS is set already"
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=true "
        f"--xla_mosaic_dump_to={folder}"
    )


@dataclasses.dataclass(frozen=True)
class Region:
    """A range of bundles from `start` up to `end`: a loop's body, or the bundles that a branch may skip."""

    kind: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program. Regions are ordered by their start, outer before inner."""

    bundles: int
    regions: tuple[Region, ...]

    @property
    def kinds(self) -> str:
        return " ".join(region.kind for region in self.regions)

    def issued(self, times: Sequence[float]) -> float:
        """Returns the bundles issued if regions are entered `times` times. Bundles in no region count once."""
        assert len(times) == len(self.regions), (self.kinds, times)
        total = 0.0
        for bundle in range(self.bundles):
            # Regions are sorted outer before inner, so the last that holds a bundle is the innermost.
            inside = [n for region, n in zip(self.regions, times, strict=True) if region.start <= bundle < region.end]
            total += inside[-1] if inside else 1
        return total


def read(folder: Path, name: str) -> Program:
    """Returns the program of the only custom call of that name, to which the compiler may add a number."""
    files = [path for own, path in _listings(folder) if re.fullmatch(rf"{re.escape(name)}(\.\d+)?", own)]
    assert len(files) == 1, (name, [path.name for path in files])
    return _program(files[0])


def issued_by_xla(folder: Path, hlo: str) -> float:
    """Returns a lower bound of the bundles of XLA's fusions and copies: loops inside an iteration count once."""
    total = 0.0
    for name, path in _listings(folder):
        bounds = re.search(rf'%{re.escape(name)} = .*"iteration_bounds":\[([^]]*)\]', hlo)
        # The program's start and end have no instruction in the HLO.
        if f"%{name} = " in hlo:
            program = _program(path)
            times = math.prod(int(bound) for bound in re.findall(r"\d+", bounds.group(1))) if bounds else 1
            total += program.issued([times] * len(program.regions))
    return total


def _listings(folder: Path) -> list[tuple[str, Path]]:
    found = ((re.fullmatch(r"\d+-(.+)-\d+-final_bundles\.txt", path.name), path) for path in folder.iterdir())
    return [(match.group(1), path) for match, path in found if match]


def _program(listing: Path) -> Program:
    begins: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    last = 0
    for line in listing.read_text().splitlines():
        if (number := _LINE.match(line)) is None:
            continue
        last = int(number.group(1), 16)
        for kind, region in _REGION.findall(line):
            if kind != "End":
                begins[region] = last
        branches += [(last, region) for region in _BRANCH.findall(line)]
    regions = []
    for bundle, target in branches:
        # On chips with two cores, a core without a part of the grid jumps to an end that is not marked.
        if target not in begins:
            continue
        begin = begins[target]
        # A backward branch closes a loop; a forward branch skips the bundles between.
        regions.append(Region("loop", begin, bundle + 1) if begin <= bundle else Region("if", bundle + 1, begin))
    return Program(last + 1, tuple(sorted(regions, key=lambda region: (region.start, -region.end))))
