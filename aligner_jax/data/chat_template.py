"""Renders chat templates in a jinja2 sandbox, with the names that Hugging Face's templates use, within a budget."""

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

MAX_CHARACTERS = 100_000
"""Length limit of a template, in characters. The longest published templates have some 20,000."""


class _Generation(jinja2.ext.Extension):
    """Parses `{% generation %}` as its body. The tag marks the model's text, which rendering does not need."""

    tags: ClassVar[set[str]] = {"generation"}  # pyright: ignore[reportIncompatibleVariableOverride]

    def parse(self, parser: jinja2.parser.Parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


TODAY = datetime.datetime(2024, 7, 26)
"""Fixed date that templates see as today; Llama 3.2's template falls back on the same one.

The real date would change an example's tokens from day to day: a resumed run would differ from an uninterrupted one,
and prompts would differ from those of training.
"""


def _raise(message: object):
    raise jinja2.TemplateError(template_budget.plain(template_budget.current().written(message)))


def _today(pattern: str) -> str:
    # The C library pads to any width in the format, and so could allocate without limit.
    if len(pattern) > 1000 or re.search(r"%[^a-zA-Z%]*\d", pattern):
        raise jinja2.TemplateError("strftime_now takes a format of at most 1,000 characters, without widths")
    return TODAY.strftime(pattern)


def _to_json(value, ensure_ascii: bool = False, indent: int | None = None, separators=None, sort_keys: bool = False):
    """Returns JSON without the HTML escapes of jinja2's filter; takes the arguments of transformers' `tojson`."""
    budget = template_budget.current()
    size = budget.weigh(value)
    width = template_budget.bounded(indent)
    # JSON writes a character as at most six, and adds at most two separators and an indented line per value.
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
    """Returns a conversation as the template writes it.

    Args:
      template: text of the chat template.
      messages: turns of the conversation.
      add_generation_prompt: ends the text with the beginning of an assistant turn.
      variables: special tokens by name (`bos_token`, …).

    Raises:
      InputError: the template is malformed, needs a field that the messages lack, refuses the messages, uses a feature
        that the sandbox forbids, or exceeds its budget of steps and memory.
    """
    if len(template) > MAX_CHARACTERS:
        raise InputError(f"the chat template has {len(template):,} characters; at most {MAX_CHARACTERS:,} are read")
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
        # A template is a program, so it may raise any exception.
        reason = str(error) or type(error).__name__
        raise InputError(f"the chat template refuses the conversation: {reason}") from error
