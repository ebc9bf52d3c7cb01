"""Fields of the configs with their defaults, read from the source of their dataclasses."""

import ast
import dataclasses
import textwrap
from collections.abc import Iterator, Sequence

from aligner_jax.usage.page import columns
from aligner_jax.usage.source import Module, Place, UnknownValue, module_of

_TRAINING, _EVALUATION = "aligner_jax.runtime.config:TrainConfig", "aligner_jax.evals.interface:EvaluateConfig"
_ROOTS = {"train": _TRAINING, "evaluate": _EVALUATION}
_KINDS = {
    "AdapterConfig": ("method", "aligner_jax.peft.methods:METHODS"),
    "ObjectiveConfig": ("name", "aligner_jax.tasks.objectives:OBJECTIVES"),
    "EvaluationConfig": ("name", "aligner_jax.evals.run:EVALUATIONS"),
}
"""Sections whose other fields are the options of an entry of a table: the deciding field, and the table."""
_OPTIONS = "options"
_DECLARATIONS = {"number", "later", "dataclasses.field"}
"""Functions that declare a field with a default."""
_INTRODUCTION = (
    "Fields of the config, with their defaults; one without a default must be given. They are set in the config's file "
    "or with --config.SECTION.FIELD=VALUE, and None is a value too:"
)
_HEAD = 25
"""Columns of a section's name."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a config.

    Attributes:
      name: its name in the section.
      default: its default as Python, or None if it must be given.
      section: the class of a nested section, or None.
    """

    name: str
    default: str | None
    section: Place | None = None


def config_paragraphs(command: str) -> list[str]:
    """Returns paragraphs of a command's help about its config: none for a command without one.

    Raises:
      UnknownValue: a class is declared in a way that only running the module would tell.
    """
    if command not in _ROOTS:
        return []
    lines, alone = [], []
    for field in fields_of(located(_ROOTS[command])):
        if field.section is None:
            alone.append(field)
        else:
            lines += [*_wrapped(field.name, _own(field.section)), *_of_options(field.section)]
    return [textwrap.fill(_INTRODUCTION, columns()), "\n".join([*lines, *_wrapped("(no section)", alone)])]


def located(name: str) -> Place:
    """Returns the definition of "package.module:NAME". Raises UnknownValue if there is none."""
    module, _, attribute = name.partition(":")
    return module_of(module).find(ast.Name(attribute))


def fields_of(place: Place) -> list[Field]:
    """Returns the fields of a dataclass, those of its base classes first.

    Raises:
      UnknownValue: it is none.
    """
    node, module = place
    if not isinstance(node, ast.ClassDef):
        raise UnknownValue(ast.unparse(node)[:100])
    found: dict[str, Field] = {}
    for base in node.bases:
        parent = module.find(base)
        found |= {field.name: field for field in fields_of(parent)} if isinstance(parent.node, ast.ClassDef) else {}
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            default, section = _default(each.value, module), _section(each.annotation, module)
            found[each.target.id] = Field(each.target.id, default, section)
    return list(found.values())


def options_of(class_name: str) -> Iterator[tuple[str, list[Field]]]:
    """Yields the names of a table's entries and the fields of their options; see `_KINDS`.

    Raises:
      UnknownValue: the table is written in another way.
    """
    table, module = located(_KINDS[class_name][1])
    if not isinstance(table, ast.Dict):
        raise UnknownValue(ast.unparse(table)[:100])
    for key, value in zip(table.keys, table.values, strict=True):
        entry, of_entry = module.find(value)
        if key is None or not isinstance(entry, ast.Call):
            raise UnknownValue(ast.unparse(value)[:100])
        named = {each.arg: each.value for each in entry.keywords}
        options = named[_OPTIONS] if _OPTIONS in named else entry.args[0]
        yield module.value(key), fields_of(of_entry.find(options))


def _own(section: Place) -> list[Field]:
    return [field for field in fields_of(section) if not (field.name == _OPTIONS and _class_name(section) in _KINDS)]


def _of_options(section: Place) -> Iterator[str]:
    if (name := _class_name(section)) in _KINDS:
        for entry, fields in options_of(name):
            flat = [field for field in fields if field.section is None]
            head = f"  {_KINDS[name][0]}={entry}"
            yield from _wrapped(head, flat) if fields else [f"  {head:<{_HEAD}} no options"]
            for field in fields:
                if field.section is not None:
                    yield from _wrapped(f"    {field.name}", fields_of(field.section))


def _class_name(place: Place) -> str:
    return place.node.name if isinstance(place.node, ast.ClassDef) else ""


def _wrapped(head: str, fields: Sequence[Field]) -> list[str]:
    texts = [field.name if field.default is None else f"{field.name}={field.default}" for field in fields]
    begin = f"  {head:<{_HEAD}} "
    # Spaces inside a field's text are kept together.
    joined = "  ".join(text.replace(" ", "\0") for text in texts)
    lines = textwrap.wrap(
        joined, columns(), initial_indent=begin, subsequent_indent=" " * len(begin), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\0", " ") for line in lines]


def _default(value: ast.AST | None, module: Module) -> str | None:
    if value is None:
        return None
    if isinstance(value, ast.Call) and ast.unparse(value.func) in _DECLARATIONS:
        given = {each.arg: each.value for each in value.keywords}
        if "default_factory" in given:
            factory = ast.unparse(given["default_factory"])
            return {"dict": "{}", "tuple": "()", "list": "[]"}.get(factory, f"{factory}()")
        first = given.get("default", value.args[0] if value.args else None)
        return None if first is None else _default(first, module)
    try:
        constant = module.value(value)
    except UnknownValue:
        return ast.unparse(value)
    return ast.unparse(value) if isinstance(constant, list) else repr(constant)


def _section(annotation: ast.AST, module: Module) -> Place | None:
    """Returns the class that an annotation names, alone or in a union, if it is of this package."""
    names = [annotation.left, annotation.right] if isinstance(annotation, ast.BinOp) else [annotation]
    for name in names:
        try:
            place = module.find(name)
        except UnknownValue:
            continue
        if isinstance(place.node, ast.ClassDef):
            return place
    return None
