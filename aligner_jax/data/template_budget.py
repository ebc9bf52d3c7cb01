"""Limits the steps and the memory of a chat template while it renders.

A template is a program that comes with a model. Its loops, calls, repetitions, concatenations and filters are charged
to a budget before they run, so that every template ends soon, and at the same point on every machine.
"""

import contextlib
import contextvars
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jinja2.utils import Namespace

STEPS, STEPS_PER_MESSAGE = 2_000_000, 10_000
"""Limit of evaluated template nodes: a constant, and an addition per message.

A loop iteration costs all nodes of its body. Published templates take some hundred steps per message.
"""
BYTES, BYTES_PER_BYTE = 12 * 2**20, 256
"""Limit of the memory of all texts and lists made, in bytes: a constant, and an addition per byte of conversation."""
MAX_WIDTH = 1000
"""Largest width, precision, indentation or count in formatting."""
MAX_BITS = 4096
"""Size limit of integers, in bits."""
_STEPS_WEIGHED = 8
"""Steps charged for the visit of a value in a list, which takes about as long."""
SCALARS = frozenset((str, int, bool, float, type(None)))
_SEVERAL = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))
_PERCENT = re.compile(
    r"%(?:\((?P<key>[^()]*)\))?[#0\- +]*(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d+))?[hlL]?(?P<kind>.)", re.S
)


class OverBudget(Exception):
    """A template exceeds its budget; the message names the limit."""


class Budget:
    """Remaining steps and memory of one rendering.

    Args:
      steps: nodes that may be evaluated.
      memory: bytes of texts and lists that may be made.
    """

    __slots__ = ("memory", "steps")

    def __init__(self, steps: int = STEPS, memory: int = BYTES) -> None:
        self.steps, self.memory = steps, memory

    def step(self, count: int = 1) -> None:
        """Charges steps. Raises OverBudget if too few are left."""
        self.steps -= count
        if self.steps < 0:
            raise OverBudget("it takes too many steps: are its loops without end?")

    def take(self, size: float) -> None:
        """Charges bytes before they are used. Raises OverBudget if too few are left."""
        self.memory -= int(size)
        if self.memory < 0:
            raise OverBudget("it makes too much text: does it repeat something too often?")

    def text(self, length: float, of: str = "\0") -> None:
        """Charges a text of `length` characters, with the bytes per character of the text `of`."""
        if length > 256:
            self.step(int(length) >> 8)
        self.take(64 + length * (1 if of.isascii() else 4))

    def made(self, value: object) -> object:
        """Charges the result of an operation on charged values; returns it."""
        if isinstance(value, str):
            self.text(len(value), value)
        elif isinstance(value, list | tuple | dict | set):
            self.step(len(value) >> 3)
            self.take(16 * len(value))
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise OverBudget("it makes a number of thousands of bits")
        return value

    def weigh(self, value: object) -> int:
        """Charges steps for a value and all nested values, with repetition; returns its size as text, in bytes.

        Comparing, hashing, sorting and printing take as long. A list that holds another twice, nested forty deep, is
        small in memory and takes years to print.
        """
        if type(value) in SCALARS and not (isinstance(value, str) and len(value) > 256):
            self.step()
            if isinstance(value, str):
                return 2 + len(value) * _width(value)
            return 32 + (value.bit_length() // 3 if isinstance(value, int) else 0)
        size, waiting = 0, [value]
        while waiting:
            each = waiting.pop()
            if isinstance(each, str):
                size += 2 + len(each) * _width(each)
                self.step(1 + (len(each) >> 8))
                continue
            self.step(_STEPS_WEIGHED)
            size += 16
            if isinstance(each, Mapping):
                waiting.extend(each.keys())
                waiting.extend(each.values())
            elif isinstance(each, _SEVERAL):
                waiting.extend(each)
            elif isinstance(each, range):
                # Its integers are made on demand.
                self.step(len(each))
                size += 9 * len(each)
            elif isinstance(each, Namespace):
                # jinja2 prints all its private attributes, and one of them may be the namespace itself.
                self.step(20 * _STEPS_WEIGHED)
                waiting.append(dict(object.__getattribute__(each, "_Namespace__attrs")))
            elif isinstance(each, int):
                size += each.bit_length() // 3
        return size

    def written(self, value: object) -> object:
        """Charges a value before its conversion to text; returns it."""
        if isinstance(value, str):
            self.text(len(value), value)
        elif type(value) is int:
            self.take(64 + value.bit_length())
        else:
            self.take(self.weigh(value))
        return value

    def rounds(self, iterable: Iterable, cost: int, size: int) -> Iterator:
        """Yields the items of a loop, and charges every iteration with the steps and the text of its body."""
        for item in iterable:
            self.step(cost)
            if size:
                self.take(size)
            yield item

    def repeated(self, value: str | Sequence, times: int) -> None:
        """Charges `value * times` before it is made."""
        if isinstance(value, str):
            self.text(len(value) * max(times, 0), value)
        else:
            self.step(len(value) * max(times, 0) >> 3)
            self.take(16 * len(value) * max(times, 0))

    def power(self, base: object, exponent: object) -> None:
        """Refuses an integer power `base ** exponent` of more than `MAX_BITS`."""
        if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > MAX_BITS:
            raise OverBudget("it makes a number of thousands of bits")

    def percent(self, pattern: str, values: object) -> None:
        """Charges `pattern % values` before it is made."""
        length = len(pattern)
        self.step(4 * pattern.count("%"))
        for found in _PERCENT.finditer(pattern):
            for name in ("width", "precision"):
                length += bounded(found[name])
        self.text(length, pattern)
        # A named value may be written at every `%`, and in quotes.
        places = 1 if not isinstance(values, Mapping) else max(pattern.count("%"), 1)
        self.take(2 * places * self.weigh(values))

    def replaced(self, text: str, old: str, new: str) -> None:
        """Charges `text.replace(old, new)` before it is made."""
        self.step(len(text) >> 6)
        count = text.count(old)
        self.text(len(text) + count * max(len(new) - len(old), 0), text if _width(text) > _width(new) else new)

    def searched(self, text: str, part: object) -> None:
        """Charges a search from the end, or for any character of `part`, whose time grows with both lengths."""
        if isinstance(part, str):
            self.step(len(text) * len(part) >> 10)

    def unpacked(self, value: object) -> object:
        """Charges a list or dict that is unpacked into arguments; returns its items."""
        if isinstance(value, Mapping):
            self.step(8 * len(value))
            self.take(200 * len(value))
            return value
        return self.rounds(value, 8, 100)  # pyright: ignore[reportArgumentType]

    def listed(self, value: Iterable) -> list:
        """Returns the items as a list; charges a text first, since every character becomes a text of its own."""
        if isinstance(value, str):
            self.take(80 * len(value))
        return list(value)

    def joined(self, separator: str, items: Sequence) -> None:
        """Charges `separator.join(items)` before it is made."""
        self.take(sum(self.weigh(item) for item in items))
        self.text(len(separator) * max(len(items) - 1, 0), separator)


def bounded(value: object) -> int:
    """Returns a width or count of formatting as a nonnegative integer.

    Raises:
      OverBudget: it exceeds `MAX_WIDTH`, or is an asterisk.
    """
    if value is None:
        return 0
    if value == "*":
        raise OverBudget("its formats take a width from their values")
    if isinstance(value, str) and len(value) > 9:
        raise OverBudget(f"it formats to a width of more than {MAX_WIDTH:,}")
    try:
        number = int(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        # Some filters take a text in place of a width.
        number = len(value) if isinstance(value, str) else 0
    if not -MAX_WIDTH <= number <= MAX_WIDTH:
        raise OverBudget(f"it formats to a width of more than {MAX_WIDTH:,}")
    return abs(number)


def plain(value: object) -> str:
    """Returns a value's text, as jinja2 writes it."""
    return value if isinstance(value, str) else str(value)


def _width(text: str) -> int:
    """Returns a bound of the memory per character, in bytes."""
    return 1 if text.isascii() else 4


_budget: contextvars.ContextVar[Budget] = contextvars.ContextVar("budget")


def current() -> Budget:
    """Returns the budget of the current rendering."""
    return _budget.get()


@contextlib.contextmanager
def spending(budget: Budget) -> Iterator[Budget]:
    """Makes `budget` the current one within the context."""
    token = _budget.set(budget)
    try:
        yield budget
    finally:
        _budget.reset(token)


def for_conversation(messages: Sequence[object]) -> Budget:
    """Returns a budget that grows with the number and the size of the messages."""
    whole = Budget(2**62, 2**62)
    size = whole.weigh(messages)
    return Budget(STEPS + STEPS_PER_MESSAGE * len(messages) + size // 16, BYTES + BYTES_PER_BYTE * size)
