"""Chats as lm-evaluation-harness's `hf` backend writes them: a last message left open, a system turn that may go."""

from collections.abc import Sequence

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError

_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands at the end of a message to be continued; its space tells whether the template keeps white space there."""

type Messages = Sequence[dict[str, str]]


def render_with_or_without_system(
    tokenizer: Tokenizer, messages: Messages, *, add_generation_prompt: bool
) -> tuple[str, bool]:
    """Returns a chat's text, and whether its system messages had to be left out of it.

    They are where the template refuses them, as in `HFLM.apply_chat_template` of lm-eval.

    Args:
      add_generation_prompt: False leaves the last message open, see `render_open`.

    Raises:
      InputError: there is no chat template, or it refuses the chat without system messages too.
    """

    def render(messages: Messages) -> str:
        if add_generation_prompt:
            return tokenizer.render_chat(messages, add_generation_prompt=True)
        return render_open(tokenizer, messages)

    try:
        return render(messages), False
    except InputError:
        others = [message for message in messages if message["role"] != "system"]
        if len(others) in (0, len(messages)):
            raise
        return render(others), True


def render_open(tokenizer: Tokenizer, messages: Messages) -> str:
    """Returns a chat's text up to the end of its last message, which is to be continued.

    The same text as `continue_final_message` of transformers' `apply_chat_template` gives: white space at the
    message's end stays where the template keeps it, and goes with all before it where the template trims.

    Raises:
      InputError: there is no chat template, it refuses the chat, or it does not write the last message as it is.
    """
    if not messages:
        raise InputError("a chat without messages has no last one to be continued")
    last = messages[-1]
    text = tokenizer.render_chat([*messages[:-1], {**last, "content": last["content"] + _MARK}])
    end = text.rfind(_MARK.strip())
    if end < 0 or last["content"].strip() not in text:
        raise InputError("the chat template changes the last message, so that it cannot be left open to be continued")
    return text[:end] if text.startswith(_MARK, end) else text[:end].rstrip()
