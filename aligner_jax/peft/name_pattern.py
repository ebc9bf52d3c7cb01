"""Matches regular expressions of module names (PEFT's `target_modules`) in bounded time.

Patterns come from files, and Python's `re` can take exponential time for a pattern of twenty characters. This matcher
instead propagates sets of positions, the bits of an integer, through the pattern. It never tries a position twice, and
a budget bounds the work. A pattern accepts the same names as `re.fullmatch`. Without capturing, greedy and lazy repeats
are equivalent.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

MAX_CHARACTERS = 100_000
_MAX_DEPTH = 40
_MAX_REPEATS = 1000
_MAX_STEPS = 500_000
_SPECIAL = frozenset(".^$*+?{}[]\\|()")


class PatternError(ValueError):
    """A pattern is invalid, is not supported, or takes too much work; the message says which."""


class NamePattern:
    """A regular expression for whole names.

    Supported are literals, `.`, classes, `|`, groups, `* + ? {m,n}` and their lazy forms, `^ $ \\A \\Z \\b`,
    look-aheads, and `\\d \\w \\s` and their complements. Not supported are back-references, look-behinds, possessive
    repeats and flags.

    Raises:
      PatternError: the pattern is invalid or not supported.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_CHARACTERS:
            raise PatternError(f"it has {len(pattern):,} characters, of at most {MAX_CHARACTERS:,}")
        self._root = _Parser(pattern).whole()
        self._steps = 0

    def matches(self, name: str) -> bool:
        """Returns True if the pattern matches the whole name.

        Raises:
          PatternError: all calls together exceeded the budget, which no useful pattern does.
        """
        return bool(self._ends(self._root, 1, name) >> len(name) & 1)

    def _ends(self, node: "_Node", starts: int, name: str) -> int:
        """Returns the end positions of `node` after any of the positions `starts`, both as bits."""
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise PatternError("it takes too much work to match")
        if not starts:
            return 0
        match node:
            case _Text(text):
                return _shifted(starts, len(text), lambda at: name.startswith(text, at))
            case _Character(accepts):
                return _shifted(starts, 1, lambda at: at < len(name) and accepts(name[at]))
            case _Where(holds):
                return _shifted(starts, 0, lambda at: holds(name, at))
            case _Ahead(inner, wanted):
                return _shifted(starts, 0, lambda at: bool(self._ends(inner, 1 << at, name)) == wanted)
            case _Sequence(parts):
                for part in parts:
                    starts = self._ends(part, starts, name)
                return starts
            case _Choice(parts):
                ends = 0
                for part in parts:
                    ends |= self._ends(part, starts, name)
                return ends
            case _Repeat(inner, least, most):
                for _ in range(least):
                    starts = self._ends(inner, starts, name)
                ends = new = starts
                # Only new positions are followed, so there are at most as many rounds as characters.
                while new and most != 0:
                    new = self._ends(inner, new, name) & ~ends
                    ends |= new
                    most = None if most is None else most - 1
                return ends


class _Text(NamedTuple):
    text: str


class _Character(NamedTuple):
    accepts: Callable[[str], bool]


class _Where(NamedTuple):
    """An assertion about a position in the name."""

    holds: Callable[[str, int], bool]


class _Ahead(NamedTuple):
    inner: "_Node"
    wanted: bool


class _Sequence(NamedTuple):
    parts: "tuple[_Node, ...]"


class _Choice(NamedTuple):
    parts: "tuple[_Node, ...]"


class _Repeat(NamedTuple):
    """`inner` at least `least` times, and then up to `most` times more (None for any number of times)."""

    inner: "_Node"
    least: int
    most: int | None


type _Node = _Text | _Character | _Where | _Ahead | _Sequence | _Choice | _Repeat


def _shifted(starts: int, by: int, passes: Callable[[int], bool]) -> int:
    ends = 0
    while starts:
        at = (starts & -starts).bit_length() - 1
        starts &= starts - 1
        if passes(at):
            ends |= 1 << (at + by)
    return ends


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _is_boundary(name: str, at: int) -> bool:
    before, after = at > 0 and _is_word(name[at - 1]), at < len(name) and _is_word(name[at])
    return before != after


def _is_end(name: str, at: int) -> bool:
    return at == len(name) or (at == len(name) - 1 and name[at] == "\n")


_KINDS: dict[str, Callable[[str], bool]] = {"d": str.isdecimal, "w": _is_word, "s": str.isspace}
_PLACES: dict[str, Callable[[str, int], bool]] = {
    "A": lambda name, at: at == 0,
    "Z": lambda name, at: at == len(name),
    "b": _is_boundary,
}


class _Parser:
    """Recursive-descent parser of one pattern."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at, self.depth = pattern, 0, 0
        self.group_names: set[str] = set()

    def whole(self) -> _Node:
        node = self._choice()
        if self.at < len(self.pattern):
            raise self._error("unbalanced parenthesis")
        return node

    def _choice(self) -> _Node:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            atom = self._atom()
            node = self._repeated(atom)
            # Adjacent letters are merged into one text, which takes one step to match.
            if isinstance(node, _Text) and parts and isinstance(last := parts[-1], _Text):
                parts[-1] = _Text(last.text + node.text)
            else:
                parts.append(node)
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def _atom(self) -> _Node:
        start = self.at
        character = self._next()
        if character == "(":
            return self._group()
        if character == "[":
            return _Character(self._class())
        if character == "\\":
            return self._escape()
        if character == ".":
            return _Character(lambda c: c != "\n")
        if character == "^":
            return _Where(_PLACES["A"])
        if character == "$":
            return _Where(_is_end)
        if character in _SPECIAL:
            self.at = start
            raise self._error(f"{character!r} has nothing before it")
        return _Text(character)

    def _repeated(self, node: _Node) -> _Node:
        start = self.at
        if self._take("*"):
            least, most = 0, None
        elif self._take("+"):
            least, most = 1, None
        elif self._take("?"):
            least, most = 0, 1
        elif found := re.compile(r"\{([0-9]{1,4})?(?:(,)([0-9]{1,4})?)?\}").match(self.pattern, self.at):
            least, comma, end = int(found[1] or 0), found[2], found[3]
            if not found[1] and not comma:
                raise self._error("'{' begins no number of repeats")
            most = None if comma and end is None else int(end) - least if comma else 0
            if max(least, most or 0) > _MAX_REPEATS or (most is not None and most < 0):
                raise self._error(f"repeats are from fewer to more, and at most {_MAX_REPEATS}")
            self.at = found.end()
        else:
            return node
        if isinstance(node, _Where):
            self.at = start
            raise self._error("a position cannot be repeated")
        self._take("?")
        if self.at < len(self.pattern) and self.pattern[self.at] in "*+?":
            raise self._error("a repeat is repeated, or possessive")
        return _Repeat(node, least, most)

    def _group(self) -> _Node:
        if self.depth == _MAX_DEPTH:
            raise self._error(f"more than {_MAX_DEPTH} groups in each other")
        self.depth += 1
        wanted = None
        if self._take("?"):
            if named := re.compile(r"P<([A-Za-z_][A-Za-z0-9_]*)>").match(self.pattern, self.at):
                self.at = named.end()
                if named[1] in self.group_names:
                    raise self._error(f"two groups have the name {named[1]!r}")
                self.group_names.add(named[1])
            elif self._take("=") or self._take("!"):
                wanted = self.pattern[self.at - 1] == "="
            elif not self._take(":"):
                raise self._error("a group of this kind is not supported")
        inner = self._choice()
        if not self._take(")"):
            raise self._error("missing )")
        self.depth -= 1
        return inner if wanted is None else _Ahead(inner, wanted)

    def _escape(self) -> _Node:
        letter = self._next()
        if letter in _PLACES:
            return _Where(_PLACES[letter])
        accepts = self._kind(letter)
        return _Text(letter) if accepts is None else _Character(accepts)

    def _kind(self, letter: str) -> Callable[[str], bool] | None:
        """Returns a predicate for an escaped letter's class of characters; None if it stands for itself."""
        if letter.lower() in _KINDS and letter.isascii():
            accepts = _KINDS[letter.lower()]
            return accepts if letter.islower() else lambda c: not accepts(c)
        if letter.isascii() and letter.isalnum():
            raise self._error(f"\\{letter} is not supported")
        return None

    def _class(self) -> Callable[[str], bool]:
        negated, kinds, ranges = self._take("^"), [], []
        first = True
        while first or not self._take("]"):
            first = False
            low = high = self._member()
            if self.pattern.startswith("-", self.at) and not self.pattern.startswith("-]", self.at):
                self.at += 1
                high = self._member()
                if callable(low) or callable(high) or high < low:
                    raise self._error("a range of characters has no end, or ends before it begins")
            if callable(low):
                kinds.append(low)
            elif not callable(high):
                ranges.append((low, high))
        return lambda c: negated != (any(k(c) for k in kinds) or any(low <= c <= high for low, high in ranges))

    def _member(self) -> str | Callable[[str], bool]:
        """Returns a character of a class, or the predicate of an escaped letter."""
        character = self._next()
        if character == "\\":
            letter = self._next()
            return self._kind(letter) or letter
        # Python reserves these for set operations in classes.
        if character == "[" or self.pattern[self.at - 1 : self.at + 1] in ("--", "&&", "||", "~~"):
            raise self._error(f"{character!r} in a class of characters should be escaped")
        return character

    def _next(self) -> str:
        if self.at == len(self.pattern):
            raise self._error("it ends too early")
        self.at += 1
        return self.pattern[self.at - 1]

    def _take(self, wanted: str) -> bool:
        found = self.pattern.startswith(wanted, self.at)
        self.at += len(wanted) if found else 0
        return found

    def _error(self, problem: str) -> PatternError:
        return PatternError(f"{problem} (character {self.at + 1})")
