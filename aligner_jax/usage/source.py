"""Evaluates constants of the package's modules from their source, without importing them."""

import ast
import functools
import operator
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Pow: operator.pow}
_DEEPEST = 50
"""Limit on the names that are followed for one constant; real ones stay below."""


class UnknownValue(Exception):
    """Raised for an expression that cannot be evaluated without running the module."""


class Place(NamedTuple):
    """An expression or a class, and the module in whose names it is written."""

    node: ast.AST
    module: "Module"


class Module:
    """A parsed module of the package.

    Attributes:
      doc: its docstring; "" without one.
      tree: its syntax tree.
    """

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.doc = ast.get_docstring(self.tree) or ""
        self._names: dict[str, ast.AST] = {}
        self._imported: dict[str, str] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom):
                self._imported |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
            elif isinstance(node, ast.ClassDef | ast.TypeAlias):
                self._names[node.name.id if isinstance(node, ast.TypeAlias) else node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Name):
                        self._names[target.id] = node.value
                    elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        pairs = zip(target.elts, node.value.elts, strict=False)
                        self._names |= {name.id: value for name, value in pairs if isinstance(name, ast.Name)}

    def find(self, node: ast.AST, depth: int = 0) -> Place:
        """Returns what an expression stands for: a name or an attribute of a module is followed to its definition.

        Raises:
          UnknownValue: the definition is not in the package.
        """
        if depth > _DEEPEST:
            raise UnknownValue(ast.dump(node)[:100])
        if isinstance(node, ast.Name):
            if node.id in self._names:
                return self.find(self._names[node.id], depth + 1)
            if node.id in self._imported:
                module, _, name = self._imported[node.id].rpartition(".")
                return module_of(module).find(ast.Name(name), depth + 1)
            raise UnknownValue(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in self._imported:
            return module_of(self._imported[node.value.id]).find(ast.Name(node.attr), depth + 1)
        return Place(node, self)

    def value(self, node: ast.AST) -> Any:
        """Returns the value of an expression of constants; of a dict, its keys.

        Raises:
          UnknownValue: it is of another kind.
        """
        node, module = self.find(node)
        match node:
            case ast.Constant():
                return node.value
            case ast.List() | ast.Tuple() | ast.Set():
                return [item for each in node.elts for item in module._items(each)]
            case ast.Dict():
                return [item for each in node.keys if each is not None for item in module._items(each)]
            case ast.BinOp() if type(node.op) in _OPERATORS:
                return _OPERATORS[type(node.op)](module.value(node.left), module.value(node.right))
            case ast.UnaryOp(op=ast.USub()):
                return -module.value(node.operand)
            case ast.Subscript(value=ast.Name(id="Literal")):
                return module.value(node.slice) if isinstance(node.slice, ast.Tuple) else [module.value(node.slice)]
            case ast.Call(func=ast.Name(id="get_args")):
                given = node.args[0]
                alias = isinstance(given, ast.Attribute) and given.attr == "__value__"
                return module.value(given.value if isinstance(given, ast.Attribute) and alias else given)
            case ast.TypeAlias():
                return module.value(node.value)
        raise UnknownValue(ast.unparse(node)[:100])

    def _items(self, node: ast.AST) -> list[Any]:
        return list(self.value(node.value)) if isinstance(node, ast.Starred) else [self.value(node)]


@functools.cache
def module_of(name: str) -> Module:
    """Returns the module of a dotted name.

    Raises:
      UnknownValue: it is not of this package.
    """
    package, *parts = name.split(".")
    if package == PACKAGE.name:
        for path in (PACKAGE.joinpath(*parts).with_suffix(".py"), PACKAGE.joinpath(*parts, "__init__.py")):
            if path.is_file():
                return Module(path)
    raise UnknownValue(name)
