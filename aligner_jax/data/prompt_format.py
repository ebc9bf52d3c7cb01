"""Prompt format: template and system prompt, and the rule by which every command chooses them."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol, Self

from aligner_jax.data.templates import render_prompt
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError

TemplateName = Literal["auto", "none", "alpaca", "chat"]
"""Templates that a user can choose; "auto" is the one that the adapters record."""


class Recording(Protocol):
    """An adapter's file that may record a prompt format; reading the property may raise InputError."""

    @property
    def prompt_format(self) -> "PromptFormat | None": ...


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """Template and system prompt of a prompt.

    Attributes:
      template: one of `data.templates.TEMPLATES`; "none" leaves a prompt as it is.
      system: system prompt of the template "chat"; None for none.
    """

    template: str
    system: str | None = None

    def __str__(self) -> str:
        return repr(self.template) + ("" if self.system is None else f" with the system prompt {self.system!r}")

    @classmethod
    def resolve(
        cls,
        template: str,
        system: str | None,
        recorded: Mapping[str, Recording],
        *,
        option: str = "--",
        remedy: str | None = None,
    ) -> Self:
        """Returns the format of prompts: the user's choice, else the format that the adapters' files record.

        A recorded system prompt is used only with its own template, whether "auto" or its name chooses that. If
        adapters record one template with different system prompts, its name chooses it without a system prompt, and
        "auto" is an error.

        Args:
          template: the user's template; "auto" takes the recorded one, or "none" without adapters.
          system: the user's system prompt, for "chat"; None takes the recorded one.
          recorded: the adapters' files, by names for messages. Their formats are read only if they are needed. Files
            without one, such as those of other projects, get the format of the others.
          option: prefix of the option names `template` and `system` in messages.
          remedy: advice at the end of messages about adapters; None names the options.

        Raises:
          InputError: `template` is "auto" and the adapters record no format, or different ones; a format that is needed
            cannot be read; or `system` is given and the template is not "chat".
        """
        formats: dict[PromptFormat, str] = {}
        is_needed = template == "auto" or (template == "chat" and system is None)
        for adapter, file in recorded.items() if is_needed else ():
            if (found := file.prompt_format) is not None:
                formats.setdefault(found, adapter)
        if template == "auto":
            if recorded and not formats:
                name_it = f"name it: {option}template=alpaca (as the paper's were), chat or none"
                raise InputError(
                    f"{next(iter(recorded))} does not record how its training data made prompts; {remedy or name_it}"
                )
            if len(formats) > 1:
                (first, of_first), (second, of_second) = list(formats.items())[:2]
                name_one = f"name the one to look at them with: {option}template=… [{option}system=…]"
                raise InputError(
                    f"{of_first} was trained with the prompts of {first} and {of_second} with those of {second}; "
                    f"{remedy or name_one}"
                )
            template = next(iter(formats)).template if formats else "none"
        if system is None and template == "chat":
            systems = [found.system for found in formats if found.template == template]
            system = systems[0] if len(systems) == 1 else None
        elif system is not None and template != "chat":
            raise InputError(f"{option}system is of the template chat, and the prompts' is {template}")
        return cls(template, system)

    def render(self, prompt: str, tokenizer: Tokenizer) -> str:
        """Returns the text whose continuation answers the prompt. Encode it with `bos=tokenizer.add_bos`.

        Raises:
          InputError: the template is unknown, or the tokenizer has no chat template or one that refuses the prompt.
        """
        if self.template == "none":
            return prompt
        return render_prompt(prompt, tokenizer, self.template, system=self.system)
