"""The page of the public Python names."""

import inspect

import aligner_jax as aj
from scripts.site.reference.text import code, entries, paragraphs, prose, sections

HEAD = """# Python

`import aligner_jax as aj`. Shapes are in names: `b` batch, `t` position, `d` width of the model, `n` query heads,
`k` key-value heads, `h` width of a head, `v` vocabulary, `l` layer, `p` prefix token, `r` rank.
"""


def api_page() -> str:
    """Returns the page, in Markdown."""
    return "\n".join([HEAD, *(described(name, getattr(aj, name)) for name in names())])


def names() -> list[str]:
    """Returns the public names, functions first."""
    return sorted(aj.__all__, key=lambda name: (inspect.isclass(getattr(aj, name)), name.startswith("_"), name))


def described(name: str, value: object) -> str:
    """Returns the section of a function, class or constant."""
    parts = [f"## {code(f'aj.{name}')}\n"]
    if not callable(value):
        return "\n".join([*parts, code(repr(value)), ""])
    if not (inspect.isclass(value) and issubclass(value, Exception)):
        parts += [f"```python\n{_signature(name, value)}\n```\n"]
    parts += _doc(inspect.getdoc(value))
    if inspect.isclass(value):
        for member, attribute in vars(value).items():
            function = attribute.fget if isinstance(attribute, property) else attribute
            said = inspect.getdoc(function)
            ours = inspect.isfunction(function) and function.__module__ == value.__module__
            if ours and said and not member.startswith("_"):
                brackets = "" if isinstance(attribute, property) else "(…)"
                parts += [f"- {code(f'.{member}{brackets}')}: {prose(sections(said)[''].partition(chr(10) * 2)[0])}"]
        parts += [""]
    return "\n".join(parts)


def _signature(name: str, value: object) -> str:
    parameters = inspect.signature(value).parameters.values()  # pyright: ignore[reportArgumentType]
    texts, starred = [], False
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not starred:
            texts.append("*")
        starred = starred or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        star = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        default = "" if each.default is each.empty else f"={each.default!r}"
        texts.append(f"{star}{each.name}{default}")
    one_line = f"aj.{name}({', '.join(texts)})"
    return one_line if len(one_line) < 90 else f"aj.{name}(\n    {f',{chr(10)}    '.join(texts)},\n)"


def _doc(docstring: str | None) -> list[str]:
    parts = []
    for heading, text in sections(docstring).items():
        if heading in ("Args", "Attributes", "Raises") and entries(text):
            listed = [f"- {code(entry)}: {prose(meaning)}" for entry, meaning in entries(text).items()]
            parts += [f"**{heading}**\n", *listed, ""]
        else:
            parts += [f"**{heading}**\n"] if heading else []
            parts += [paragraphs(text)]
    return parts
