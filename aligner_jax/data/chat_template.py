"""Chat templates: jinja2 in a sandbox, with what Hugging Face's templates expect to find there."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jinja2
import jinja2.ext
import jinja2.parser
import jinja2.sandbox

from aligner_jax.errors import InputError


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the model writes; rendering needs only its body."""

    tags: ClassVar[set[str]] = {"generation"}  # pyright: ignore[reportIncompatibleVariableOverride]

    def parse(self, parser: jinja2.parser.Parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


TODAY = datetime.datetime(2024, 7, 26)
"""The date that templates are told. It is the one that Llama 3.2's fall back on: with the day's own the same example
would be other tokens tomorrow, and neither would a run that goes on be the same, nor a prompt that of training.
"""


def _raise(message: str):
    raise jinja2.TemplateError(message)


def _to_json(value, indent: int | None = None, ensure_ascii: bool = False, **options) -> str:
    """Unlike jinja2's own filter, without HTML escapes."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = TODAY.strftime
    return environment.from_string(template)


def render(
    template: str, messages: Sequence[Mapping[str, object]], add_generation_prompt: bool, variables: Mapping[str, str]
) -> str:
    """The conversation in the template's form; `variables` are its special tokens (`bos_token`, …).

    Raises:
      InputError: the template is malformed, needs what the messages lack, or refuses them.
    """
    try:
        return _compile(template).render(
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **variables,
        )
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"the chat template is malformed at its line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"the chat template refuses the conversation: {error}") from error
