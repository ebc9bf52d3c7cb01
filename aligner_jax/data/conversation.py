"""Prompts of conversations, the same in a chat and at a server: the adapters' format, or the base's chat template."""

from collections.abc import Mapping, Sequence

from aligner_jax.data.prompt_format import PromptFormat, Recording
from aligner_jax.data.sources.example import Message
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError


def choose_format(
    template: str,
    system: str | None,
    recorded: Mapping[str, Recording],
    tokenizer: Tokenizer,
    *,
    remedy: str | None = None,
) -> PromptFormat:
    """Returns the format of a conversation's prompts.

    The template "auto" is the one that the adapters record. If none records one, it is the base's chat template.

    Args:
      template: the user's template.
      system: the user's system prompt; None for the recorded one.
      recorded: the adapters' files by names for messages.
      tokenizer: tokenizer of the base.
      remedy: advice at the end of messages; None names the options of commands.

    Raises:
      InputError: there is no template, or see `PromptFormat.resolve`.
    """
    if template == "auto" and all(file.prompt_format is None for file in recorded.values()):
        if tokenizer.chat_template is None:
            whose = "base has no chat template" + (", and no adapter records one" if recorded else "")
            raise InputError(f"the {whose}; {remedy or 'name one: --template=alpaca or none'}")
        template = "chat"
    return PromptFormat.resolve(template, system, recorded, remedy=remedy)


def prompt_ids(messages: Sequence[Message], prompt_format: PromptFormat, tokenizer: Tokenizer) -> list[int]:
    """Returns the token ids whose continuation answers the last message; see `render` for arguments and errors."""
    return tokenizer.encode(render(messages, prompt_format, tokenizer), bos=tokenizer.add_bos)


def render(messages: Sequence[Message], prompt_format: PromptFormat, tokenizer: Tokenizer) -> str:
    """Returns the text whose continuation answers the last message.

    A conversation of one question has the prompt that `PromptFormat.render` gives it. Alpaca's template is of one
    question; further ones begin with its headings again. Without a template, turns are lines. Only the chat template
    has a place for a system message.

    Args:
      messages: turns. A system message at the beginning takes the place of the format's system prompt. The chat
        template may take any other roles; else user and assistant alternate, and the last turn is the user's.
      prompt_format: template and system prompt.
      tokenizer: tokenizer of the base.

    Raises:
      InputError: the template does not take these roles, or the chat template refuses the conversation.
    """
    roles, contents = ([message[key] for message in messages] for key in ("role", "content"))
    if prompt_format.template == "chat":
        system: list[Message] = []
        if prompt_format.system is not None and roles[0] != "system":
            system = [{"role": "system", "content": prompt_format.system}]
        return tokenizer.render_chat([*system, *messages], add_generation_prompt=True)
    if "system" in roles:
        raise InputError(f"the prompts are those of {prompt_format}, which has no place for a system message")
    if roles != [("user", "assistant")[turn % 2] for turn in range(len(roles))] or len(roles) % 2 == 0:
        raise InputError(
            f"the prompts are those of {prompt_format}, so turns of user and assistant alternate and the last is the "
            f"user's; they are {', '.join(roles)}"
        )
    if prompt_format.template == "none":
        return "\n".join(contents)
    prompts = [prompt_format.render(question, tokenizer) for question in contents[::2]]
    later = ["\n\n" + prompt[prompt.index("### Instruction:") :] for prompt in prompts[1:]]
    parts = [prompts[0], *(part for pair in zip(contents[1::2], later, strict=True) for part in pair)]
    return "".join(parts)
