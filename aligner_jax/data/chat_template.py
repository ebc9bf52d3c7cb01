"""Chat templates: jinja2 in a sandbox, with what Hugging Face's templates expect to find there, within a budget."""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jinja2
import jinja2.ext
import jinja2.parser

from aligner_jax.data import template_budget
from aligner_jax.data.template_environment import ChargedEnvironment
from aligner_jax.errors import InputError

MOST_CHARACTERS = 100_000
"""The longest template that is read; the longest published ones have some 20,000 characters."""


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


def _raise(message: object):
    raise jinja2.TemplateError(template_budget.plain(template_budget.current().written(message)))


def _today(pattern: str) -> str:
    # The C library pads to any width that a format names.
    if len(pattern) > 1000 or re.search(r"%[^a-zA-Z%]*\d", pattern):
        raise jinja2.TemplateError("strftime_now takes a format of at most 1,000 characters, without widths")
    return TODAY.strftime(pattern)


def _to_json(value, ensure_ascii: bool = False, indent: int | None = None, separators=None, sort_keys: bool = False):
    """Unlike jinja2's own filter, without HTML escapes; the arguments are those of transformers."""
    budget = template_budget.current()
    size = budget.weigh(value)
    width = template_budget.bounded(indent)
    # No character takes more than six, and no value more than two separators and a line of its own.
    between = sum(map(len, separators)) if separators is not None else 0
    budget.take(6 * size + (size >> 3) * (between + width * 4))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = ChargedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.allow(raise_exception=_raise, strftime_now=_today)
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


def render(
    template: str, messages: Sequence[Mapping[str, object]], add_generation_prompt: bool, variables: Mapping[str, str]
) -> str:
    """Returns the conversation in the template's form; `variables` are its special tokens (`bos_token`, …).

    Raises:
      InputError: the template is malformed, needs what the messages lack, refuses them, uses what chat templates have
        no use for, or goes beyond the steps and the memory that the conversation allows it.
    """
    if len(template) > MOST_CHARACTERS:
        raise InputError(f"the chat template has {len(template):,} characters; at most {MOST_CHARACTERS:,} are read")
    messages = list(messages)
    try:
        with template_budget.spending(template_budget.for_conversation(messages)):
            return _compile(template).render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **variables,
            )
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"the chat template is malformed at its line {error.lineno}: {error.message}") from error
    except template_budget.OverBudget as error:
        raise InputError(f"the chat template does more than it may with this conversation: {error}") from None
    except RecursionError:
        raise InputError("the chat template is nested too deeply, or calls itself without end") from None
    except Exception as error:
        # A template is a program: it may raise whatever Python can.
        reason = str(error) or type(error).__name__
        raise InputError(f"the chat template refuses the conversation: {reason}") from error
