"""Renders chats as lm-evaluation-harness's `hf` backend does: the last message may stay open for continuation.

System messages are left out if the chat template refuses them.
"""

from collections.abc import Sequence

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError

_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the message to continue. Its trailing space shows if the template keeps white space there."""

type Messages = Sequence[dict[str, str]]


def render_with_or_without_system(
    tokenizer: Tokenizer, messages: Messages, *, add_generation_prompt: bool
) -> tuple[str, bool]:
    """Renders a chat, without its system messages if the template refuses them.

    It does the same as `HFLM.apply_chat_template` of lm-eval.

    Args:
      add_generation_prompt: True begins a new assistant turn; False leaves the last message open, see `render_open`.

    Returns:
      The text of the chat, and True if system messages were left out.

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
    """Renders a chat up to the end of its last message, so that the message can be continued.

    The text equals that of `continue_final_message` in transformers' `apply_chat_template`: trailing white space stays
    if the template keeps it, and is stripped if the template strips it.

    Raises:
      InputError: there is no chat template, it refuses the chat, or it changes the last message.
    """
    if not messages:
        raise InputError("a chat without messages has no last one to be continued")
    last = messages[-1]
    text = tokenizer.render_chat([*messages[:-1], {**last, "content": last["content"] + _MARK}])
    end = text.rfind(_MARK.strip())
    if end < 0 or last["content"].strip() not in text:
        raise InputError("the chat template changes the last message, so that it cannot be left open to be continued")
    return text[:end] if text.startswith(_MARK, end) else text[:end].rstrip()
