"""Collectives of a compiled program, read from its scheduled HLO text."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\}|mesh\[([^\]]*)\] \{([^}]*)\})")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_BITS = {"pred": 8, "bf16": 16}


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
      kind: one of `KINDS`.
      nbytes: size of the result on one device.
      group_size: number of participating devices.
      runs: executions per call of the program.
    """

    kind: str
    nbytes: int
    group_size: int
    runs: int

    @property
    def received(self) -> float:
        """Lower bound on the bytes that one device receives in all runs, on a ring or torus."""
        others = (self.group_size - 1) / self.group_size
        share = {"all-reduce": 2 * others, "reduce-scatter": self.group_size * others, "collective-permute": 1.0}
        return self.nbytes * self.runs * share.get(self.kind, others)


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a program. An operation that the compiler split over several fusions counts once."""
    computations = dict(_computations(hlo))
    entry = next(name for name, lines in computations.items() if lines[0].startswith("ENTRY"))
    runs: dict[str, int] = defaultdict(int)
    _count_runs(entry, 1, computations, runs)
    found: dict[str, Collective] = {}
    for name, lines in computations.items():
        for number, line in enumerate(lines[1:]):
            match = _COLLECTIVE.search(line)
            if match is None or not runs[name]:
                continue
            # An asynchronous gather appears in several fusions: its start, the products beside it, and its end.
            channel = _CHANNEL.search(line)
            key = channel.group(1) if channel else f"{name} {number}"
            result = match.group(1)
            arrays = [_nbytes(*array) for array in _ARRAY.findall(result)]
            nbytes = max(arrays) if match.group(3) else sum(arrays)
            found.setdefault(key, Collective(match.group(2), nbytes, _group_size(line), runs[name]))
    return list(found.values())


def bytes_by_kind(found: list[Collective]) -> dict[str, int]:
    """Returns result bytes per device, summed over all runs, by kind."""
    totals: dict[str, int] = defaultdict(int)
    for each in found:
        totals[each.kind] += each.nbytes * each.runs
    return dict(totals)


def _computations(hlo: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in hlo.splitlines():
        match = None if line.startswith(" ") else _COMPUTATION.match(line)
        if match:
            name, lines = match.group(2), [line]
        elif line.startswith("}") and name:
            yield name, lines
            name = ""
        elif name:
            lines.append(line)


def _count_runs(name: str, times: int, computations: dict[str, list[str]], runs: dict[str, int]) -> None:
    runs[name] += times
    for line in computations[name][1:]:
        inner = times * _trips(line, computations)
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        for each in called:
            if each in computations:
                _count_runs(each, inner, computations, runs)


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """Returns the trip count of a loop: the annotated one, or the constant in its condition; 1 for other calls."""
    if noted := _TRIPS.search(line):
        return int(noted.group(1))
    condition = _CONDITION.search(line)
    constants = _CONSTANT.findall("\n".join(computations.get(condition.group(1), []))) if condition else []
    return max(map(int, constants), default=1)


def _nbytes(dtype: str, dims: str) -> int:
    digits = re.search(r"\d+", dtype)
    bits = _BITS.get(dtype) or (int(digits.group()) if digits else 0)
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8


def _group_size(line: str) -> int:
    match = _GROUPS.search(line)
    if match is None:
        # A permutation has source-target pairs instead of groups.
        return 2
    size, members, mesh, axes = match.groups()
    if mesh is not None:
        sizes = {name: int(number) for name, number in re.findall(r"'(\w+)'=(\d+)", mesh)}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", axes))
    return int(size) if size else len(members.split(","))
