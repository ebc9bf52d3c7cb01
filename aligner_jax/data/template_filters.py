"""Filters and tests for chat templates, each charged to the current `Budget`."""

import functools
from collections.abc import Callable, Iterator

from aligner_jax.data.template_budget import bounded, current, plain

_CONSTANT = ("attr", "count", "d", "default", "first", "items", "last", "length", "safe")
_BY_ITEM = ("batch", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice")
_WHOLE = (
    "abs", "capitalize", "center", "dictsort", "e", "escape", "float", "format", "groupby", "indent", "int", "join",
    "lower", "max", "min", "replace", "round", "sort", "string", "sum", "title", "trim", "truncate", "unique", "upper",
    "wordcount",
)  # fmt: skip
_COMPARING = (
    "==", "!=", "<", "<=", ">", ">=", "eq", "equalto", "ge", "gt", "greaterthan", "in", "le", "lt", "lessthan", "ne",
    "lower", "upper",
)  # fmt: skip
_BY_ATTRIBUTE = (
    "groupby", "join", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "sum", "unique",
)  # fmt: skip
_SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u3000"


def charged(filters: dict[str, Callable]) -> dict[str, Callable]:
    """Returns the jinja2 filters that chat templates use, wrapped to be charged."""
    guards: dict[str, Callable] = dict.fromkeys(_CONSTANT, _nothing)
    guards |= {**dict.fromkeys(_BY_ITEM, _items), **dict.fromkeys(_WHOLE, _all), **_GUARDS}
    return {name: _charging(filters[name], guard, name in _BY_ATTRIBUTE) for name, guard in guards.items()}


def charged_tests(tests: dict[str, Callable]) -> dict[str, Callable]:
    """Returns jinja2's tests; those that compare are wrapped to charge their operands."""
    return {name: _charging(test, _all) if name in _COMPARING else test for name, test in tests.items()}


def pieces(text: str, separator: object, method: str) -> int:
    """Returns a bound of the number of pieces that `text.split(separator)`, or another `method`, makes."""
    if isinstance(separator, str) and separator:
        return 1 + text.count(separator)
    if method == "splitlines" or text.isascii():
        return 1 + sum(map(text.count, _SPACES))
    return 1 + len(text) // 2


def _charging(function: Callable, guard: Callable, by_attribute: bool = False) -> Callable:
    # jinja2 passes some filters the environment or context first, by an attribute that `wraps` keeps.
    skipped = int(hasattr(function, "jinja_pass_arg"))

    @functools.wraps(function)
    def charging(*args, **kwargs):
        budget = current()
        budget.step()
        budget.take(200)
        value, *others = args[skipped:]
        # Some arguments name filters, and names are hashed.
        budget.weigh([*others, *kwargs.values()])
        if by_attribute:
            value = _with_path(value, [*others, *kwargs.values()])
        checked, kwargs = guard(value, *others, **kwargs)
        result = function(*args[:skipped], *checked, **kwargs)
        return budget.rounds(result, 1, 96) if isinstance(result, Iterator) else budget.made(result)

    return charging


def _with_path(value, args: list):
    """Charges the parts of an attribute path, which jinja2 follows for every item; returns the value."""
    budget = current()
    parts = sum(each.count(".") + each.count(",") for each in args if isinstance(each, str))
    budget.take(80 * parts)
    if parts and isinstance(value, Iterator):
        return budget.rounds(value, parts, 0)
    budget.step(parts * len(value) if parts and hasattr(value, "__len__") else 0)
    return value


# A guard charges a filter's arguments, and returns the arguments to call the filter with.


def _nothing(*args, **kwargs):
    return args, kwargs


def _items(value, *args, **kwargs):
    """Charges the items of a list; `_charging` charges those of an iterator one by one."""
    if isinstance(value, str):
        current().take(80 * len(value))
    if hasattr(value, "__len__"):
        current().step(len(value))
    return (value, *args), kwargs


def _all(value, *args, **kwargs):
    """Charges a value with all nested values; makes a list of an iterator."""
    budget = current()
    if isinstance(value, Iterator):
        value = list(value)
    budget.take(budget.weigh(value))
    return (value, *args), kwargs


def _sorting(value, *args, **kwargs):
    args, kwargs = _all(value, *args, **kwargs)
    # At most 20 comparisons per item, for any number of items within the budget.
    current().step(20 * (current().weigh(args[0]) >> 4))
    return args, kwargs


def _summing(iterable, attribute=None, start=0):
    (iterable,), _ = _all(iterable)
    if not isinstance(start, int | float):
        # Lists are joined one by one, which copies the sum every time.
        current().take(len(iterable) * current().weigh(iterable))
    return (iterable, attribute, start), {}


def _joining(value, d="", attribute=None):
    (value,), _ = _all(current().listed(value))
    current().joined(plain(d), value)
    return (value, d, attribute), {}


def _replacing(s, old, new, count=None):
    budget = current()
    s, old, new = (plain(budget.written(each)) for each in (s, old, new))
    budget.replaced(s, old, new)
    return (s, old, new, count), {}


def _formatting(value, *args, **kwargs):
    budget = current()
    budget.percent(plain(budget.written(value)), kwargs or args)
    return (value, *args), kwargs


def _padding(value, width=80):
    bounded(width)
    return (*_all(value)[0], width), {}


def _trimming(value, chars=None):
    budget = current()
    budget.searched(plain(budget.written(value)), chars)
    return (value, chars), {}


def _cutting(s):
    """Charges the words of a text: each becomes a text of its own, and a second one if it changes."""
    _all(s)
    current().take(60 * len(plain(s)))
    return (s,), {}


def _indenting(s, width=4, first=False, blank=False):
    _all(s)
    s, indentation = plain(s), bounded(width)
    of, lines = s + width if isinstance(width, str) else s, pieces(s, None, "splitlines")
    current().take(80 * lines)
    current().text(len(s) + indentation * lines, of)
    return (s, width, first, blank), {}


def _batching(value, count, *args, **kwargs):
    bounded(count)
    return _items(value, count, *args, **kwargs)


def _rounding(value, precision=0, method="common"):
    bounded(precision)
    return (*_all(value)[0], precision, method), {}


def _escaping(s):
    current().take(6 * current().weigh(s))
    return (s,), {}


_GUARDS: dict[str, Callable] = {
    "batch": _batching, "center": _padding, "dictsort": _sorting, "e": _escaping, "escape": _escaping,
    "format": _formatting, "groupby": _sorting, "indent": _indenting, "join": _joining, "replace": _replacing,
    "round": _rounding, "slice": _batching, "sort": _sorting, "sum": _summing, "title": _cutting, "trim": _trimming,
    "unique": _sorting, "wordcount": _cutting,
}  # fmt: skip
