"""Counts fields that a source does not use, so that they are reported once per file."""

import collections
from collections.abc import Mapping

from aligner_jax.data.sources.context import is_history
from aligner_jax.data.sources.source import IGNORED, WANTED, Source
from aligner_jax.errors import one_line

_MAX_NAMES, _SHOWN = 100, 8


class Unused:
    """Counts the records of a file by unused field.

    Attributes:
      counts: number of records by field; a field of a turn is named "messages[].name". Empty values do not count.
    """

    def __init__(self, source: Source, unread: Mapping[str, int]) -> None:
        self._source = source
        self._known = {*source.uses, *source.ignores, *IGNORED, WANTED}
        self._turn = {*source.turn, *IGNORED}
        self.counts = collections.Counter({name: count for name, count in unread.items() if count})
        for name in self._known:
            self.counts.pop(name, None)

    def add(self, record: Mapping[str, object]) -> None:
        """Counts the fields of one record."""
        if not record.keys() <= self._known:
            for name, value in record.items():
                if name not in self._known and value not in _EMPTY and not self._is_context(name, value):
                    self._count(name)
        if self._source.turn:
            for name in self._source.uses:
                self._add_turns(name, record.get(name))

    def _is_context(self, name: str, value: object) -> bool:
        return (name in self._source.system and isinstance(value, str)) or (
            name in self._source.history and is_history(value)
        )

    def _add_turns(self, name: str, turns: object) -> None:
        found = {
            field
            for turn in (turns if isinstance(turns, list) else ())
            if isinstance(turn, dict) and not turn.keys() <= self._turn
            for field, value in turn.items()
            if field not in self._turn and value not in _EMPTY
        }
        for field in found:
            self._count(f"{name}[].{field}")

    def _count(self, name: str) -> None:
        # Bounded, because every record of a file may have other field names.
        self.counts[name if name in self.counts or len(self.counts) < _MAX_NAMES else "…"] += 1


_EMPTY = (None, "", "[]", "{}", [], {})


def told(unused: Mapping[str, int]) -> str:
    """Returns the field names and counts as one line; "" if there are none."""
    most = sorted(unused.items(), key=lambda item: (-item[1], item[0]))
    names = [f"{one_line(repr(name), 60)} ({count:,})" for name, count in most[:_SHOWN]]
    more = f" and {len(most) - _SHOWN} more" if len(most) > _SHOWN else ""
    return f"fields that are not used: {', '.join(names)}{more}" if names else ""
