"""A jinja2 environment that charges every operation of a template to the current `Budget`.

jinja2's sandbox already keeps templates from Python's internals. This module rewrites the parsed template, so that
loops, comparisons, concatenations and slices pass through functions that charge them. Operators and calls are charged
in the sandbox's own hooks. Only the filters that chat templates use are available, each wrapped.
"""

import operator
from collections.abc import Callable
from types import BuiltinMethodType, FunctionType, MethodType

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import BlockReference, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Joiner
from jinja2.visitor import NodeTransformer

from aligner_jax.data import template_filters
from aligner_jax.data.template_budget import MAX_BITS, SCALARS, OverBudget, bounded, current, plain

MAX_NODES = 12_000
"""Limit of the nodes of a parsed template; the longest published templates have some thousand."""
_STEPS_CALLED = 50
"""Steps charged for a call of a macro, which takes about as long."""
_COMPARISONS = {
    "eq": operator.eq, "ne": operator.ne, "gt": operator.gt, "gteq": operator.ge, "lt": operator.lt,
    "lteq": operator.le, "in": lambda a, b: a in b, "notin": lambda a, b: a not in b,
}  # fmt: skip
_PREFIX = " "
"""Name prefix of this module's filters; no template can write a name with a space."""
_TEXT_METHODS = frozenset(
    (
        "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum",
        "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable",
        "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix",
        "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split",
        "splitlines", "startswith", "strip", "swapcase", "title", "upper", "zfill",
    )
)  # fmt: skip
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, _TEXT_METHODS),
    (dict, frozenset(("copy", "get", "items", "keys", "values"))),
    (list, frozenset(("copy", "count", "index"))),
    (tuple, frozenset(("count", "index"))),
    (float, frozenset(("is_integer",))),
)
_PADDING = frozenset(("center", "ljust", "rjust", "zfill"))
_SEARCHING = frozenset(("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"))
_MAX_BLOCKS = 100
_OTHERS = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


class ChargedEnvironment(ImmutableSandboxedEnvironment):
    """A sandboxed environment that charges templates; see the module.

    Compiling needs a current budget as rendering does, since jinja2 folds constants.
    """

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self, **options) -> None:
        super().__init__(finalize=_written, **options)
        self.filters = {**template_filters.charged(self.filters), **_OWN}
        self.tests = template_filters.charged_tests(self.tests)
        del self.globals["lipsum"]
        self._callable = {*self.globals.values()}

    def allow(self, **functions: Callable) -> None:
        """Makes further functions available to templates, by name."""
        self.globals.update(functions)
        self._callable |= {*functions.values()}

    def _parse(self, source, name, filename):
        template = super()._parse(source, name, filename)
        count = _nodes(template)
        current().step(count)
        if count > MAX_NODES:
            raise OverBudget(f"it has {count:,} parts, of at most {MAX_NODES:,}")
        _check_blocks(template)
        template = _Charging().visit(template)
        template.set_environment(self)
        return template

    def getitem(self, obj, argument):
        if type(argument) is not str and type(argument) is not int:
            # A lookup hashes the argument, and prints it if it is missing.
            current().weigh(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value):
        # `_method` formats when the call happens.
        return None

    def call_binop(self, context, operator, left, right):
        budget = current()
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            budget.text(len(left) + len(right), right if left.isascii() else left)
            return left + right
        budget.step()
        if any(isinstance(each, int) and each.bit_length() > MAX_BITS for each in (left, right)):
            raise OverBudget("it makes a number of thousands of bits")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    budget.repeated(value, times)
        elif operator == "**":
            budget.power(left, right)
        elif operator == "%" and isinstance(left, str):
            budget.percent(left, right)
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context, __obj, *args, **kwargs):
        budget = current()
        budget.step()
        if type(__obj) is BuiltinMethodType:
            # Generated code passes these for functions that take the context.
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return budget.made(__self._method(__obj, args, kwargs))
        of = type(__obj.__self__) if type(__obj) is MethodType else type(__obj)
        if of in (LoopContext, Cycler, Joiner):
            budget.weigh(list(args))
        elif isinstance(__obj, type | FunctionType) and __obj in __self._callable:
            budget.take(500)
            if __obj is dict:
                budget.weigh(list(args))
            return budget.made(super().call(__context, __obj, *args, **kwargs))
        elif of not in (Macro, BlockReference) and not isinstance(__obj, Undefined):
            raise SecurityError(f"a chat template has no use for calling {of.__name__!r} objects")
        return super().call(__context, __obj, *args, **kwargs)

    def _method(self, method: BuiltinMethodType, args: tuple, kwargs: dict):
        owner, name, budget = method.__self__, method.__name__, current()
        names = next((names for kind, names in _METHODS if isinstance(owner, kind)), ())
        if name not in names:
            raise SecurityError(f"a chat template has no use for the method {name!r} of {type(owner).__name__!r}")
        if not isinstance(owner, str):
            budget.weigh(owner if name in ("count", "index") else args[:1])
            return method(*args, **kwargs)
        budget.step(len(owner) >> 6)
        if name in _SEARCHING:
            budget.searched(owner, args[0] if args else kwargs.get("sep"))
        if name == "format":
            budget.step(len(owner) >> 2)
            if hasattr(owner, "__html__"):
                raise SecurityError("a chat template has no use for formatting escaped text")
            return _Formatter(self).vformat(owner, args, kwargs)
        if name == "join":
            args = (budget.listed(args[0]), *args[1:]) if args else args
            budget.joined(owner, args[0] if args else [])
        elif name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
            budget.replaced(owner, args[0], args[1])
        elif name in _PADDING:
            bounded(args[0] if args else None)
        elif name in ("split", "rsplit", "splitlines"):
            budget.take(80 * template_filters.pieces(owner, args[0] if args else kwargs.get("sep"), name))
        budget.weigh(list(args))
        return method(*args, **kwargs)


class _Formatter(SandboxedFormatter):
    """`str.format` with bounded widths, which charges values before it prints them."""

    def format_field(self, value, format_spec):
        for number in "".join(c if c.isdigit() else " " for c in format_spec).split():
            bounded(number)
        budget = current()
        budget.take(2 * budget.weigh(value))
        return super().format_field(value, format_spec)

    def convert_field(self, value, conversion):
        if conversion is not None:
            budget = current()
            budget.take(6 * budget.weigh(value))
        return super().convert_field(value, conversion)


class _Charging(NodeTransformer):
    """Inserts charges into a parsed template."""

    def visit_For(self, node: nodes.For):
        cost, size = _nodes(node), _text(node)
        self.generic_visit(node)
        node.iter = _call(node, "rounds", node.iter, nodes.Const(cost), nodes.Const(size))
        if node.recursive:
            # Iterations below the first level do not pass through `node.iter`.
            node.body.insert(0, _charge(node, cost, size))
        return node

    def visit_Macro(self, node):
        cost, size = _nodes(node) + _STEPS_CALLED, _text(node)
        self.generic_visit(node)
        node.body.insert(0, _charge(node, cost, size))
        return node

    visit_CallBlock = visit_Block = visit_Macro

    def visit_Call(self, node: nodes.Call | nodes.Filter | nodes.Test):
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = _call(node, "unpacked", node.dyn_args)
        if node.dyn_kwargs is not None:
            node.dyn_kwargs = _call(node, "unpacked", node.dyn_kwargs)
        return node

    visit_Filter = visit_Test = visit_Call

    def visit_Compare(self, node: nodes.Compare):
        self.generic_visit(node)
        if len(node.ops) == 1:
            return _call(node, "compared", node.expr, nodes.Const(node.ops[0].op), node.ops[0].expr)
        node.expr = _call(node, "weighed", node.expr)
        for each in node.ops:
            each.expr = _call(node, "weighed", each.expr)
        return node

    def visit_Concat(self, node: nodes.Concat):
        self.generic_visit(node)
        return _call(node, "concatenated", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem):
        self.generic_visit(node)
        return _call(node, "sliced", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Pair(self, node: nodes.Pair):
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _call(node, "weighed", node.key)
        return node


def _check_blocks(template: nodes.Template) -> None:
    """Refuses nodes for which jinja2 repeats the names of all variables in the generated code."""
    if next(template.find_all(_OTHERS), None) is not None:
        raise SecurityError("a chat template has no other templates to include or extend")
    blocks = list(template.find_all(nodes.Block))
    if len(blocks) > _MAX_BLOCKS or any(block.scoped for block in blocks):
        raise SecurityError(f"a chat template has no use for scoped blocks, or for more than {_MAX_BLOCKS} blocks")


def _nodes(node: nodes.Node) -> int:
    return 1 + sum(1 for _ in node.find_all(nodes.Node))


def _text(node: nodes.Node) -> int:
    """Returns the bytes of text and lists that one evaluation of a node's literals makes."""
    literals = node.find_all((nodes.List, nodes.Tuple, nodes.Dict))
    return 4 * sum(len(data.data) for data in node.find_all(nodes.TemplateData)) + 100 * sum(
        1 + len(each.items) for each in literals
    )


def _call(node: nodes.Node, name: str, first: nodes.Node, *args: nodes.Node) -> nodes.Filter:
    """Returns a call of one of this module's functions, as a filter, since generated code calls filters directly."""
    for each in (first, *args):
        each.lineno = each.lineno or node.lineno
    return nodes.Filter(first, _PREFIX + name, list(args), [], None, None, lineno=node.lineno)


def _charge(node: nodes.Node, cost: int, size: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_call(node, "charge", nodes.Const(cost), nodes.Const(size)), lineno=node.lineno)


def _written(value):
    return current().written(value)


def rounds(iterable, cost: int, size: int):
    """Yields the items of a loop; see `Budget.rounds`."""
    return current().rounds(iterable, cost, size)


@jinja2.pass_context
def charge(context, cost: int, size: int) -> None:
    """Charges a call of a macro or block. Taking the context keeps jinja2 from folding the call at compile time."""
    budget = current()
    budget.step(cost)
    budget.take(size)


def compared(left, name: str, right):
    """Returns the result of a comparison, after charging both operands."""
    compare, kinds = _COMPARISONS[name], (type(left), type(right))
    # Comparisons of short values are the most frequent, and the step already charged covers them.
    if kinds == (str, str):
        if len(left) + len(right) > 256:
            current().step((len(left) + len(right)) >> 6)
    elif kinds[0] in SCALARS and (kinds[1] in SCALARS or (kinds[1] is dict and name in ("in", "notin"))):
        pass
    else:
        budget = current()
        budget.weigh(left)
        budget.weigh(right)
    return compare(left, right)


def weighed(value):
    """Returns a value, after charging it with all nested values."""
    current().weigh(value)
    return value


def concatenated(*values) -> str:
    """Returns the concatenated text of the values, after charging it."""
    budget = current()
    return "".join([plain(budget.written(value)) for value in values])


def sliced(value):
    """Returns a slice, after charging it."""
    return current().made(value)


def unpacked(value):
    """Returns the items that a call unpacks into arguments, after charging them."""
    return current().unpacked(value)


_OWN = {
    _PREFIX + function.__name__: function
    for function in (rounds, charge, compared, weighed, concatenated, sliced, unpacked)
}
