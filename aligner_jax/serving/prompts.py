"""Prompts of requests as token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

from aligner_jax.data.conversation import choose_format, prompt_ids
from aligner_jax.data.sources.example import Message
from aligner_jax.data.token_ids import check_ids
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields, shown
from aligner_jax.serving.errors import ApiError
from aligner_jax.serving.models import Recorded

_ROLES = ("system", "developer", "user", "assistant")
_REMEDY = "write the prompt yourself, and send it to /v1/completions"


def completion_prompts(fields: Fields, tokenizer: Tokenizer, most: int) -> list[list[int]]:
    """Returns the prompts of `/v1/completions`: a text, token ids, or a list of either.

    Args:
      fields: fields of the request.
      tokenizer: tokenizer of the base.
      most: prompts at most.

    Raises:
      ApiError: the field `prompt` is something else, or has too many prompts or unknown ids.
    """
    prompt = fields.get("prompt")
    prompts: Any = prompt
    if isinstance(prompt, str) or (isinstance(prompt, list) and all(type(token) is int for token in prompt) and prompt):
        prompts = [prompt]
    if not isinstance(prompts, list) or not prompts:
        raise ApiError(400, "prompt is not a text, a list of texts, or token ids", param="prompt")
    if len(prompts) > most:
        raise ApiError(400, f"prompt has {len(prompts)} prompts, and {most} are allowed", param="prompt")
    try:
        return [_ids(each, tokenizer) for each in prompts]
    except InputError as error:
        raise ApiError(400, f"prompt: {error}", param="prompt") from error


def _ids(prompt: object, tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, bos=tokenizer.add_bos)
    if not isinstance(prompt, list) or not all(type(token) is int for token in prompt):
        raise ApiError(400, "prompt is not a text, a list of texts, or token ids", param="prompt")
    check_ids(prompt, tokenizer.num_embeddings or tokenizer.vocab_size, what="it")
    return prompt


def chat_prompt(fields: Fields, recorded: Mapping[str, Recorded], tokenizer: Tokenizer) -> list[int]:
    """Returns the prompt of `/v1/chat/completions`, made by the rules of `data.conversation`.

    Args:
      fields: fields of the request.
      recorded: the model's adapters, by names for messages.
      tokenizer: tokenizer of the base.

    Raises:
      ApiError: the messages are not a conversation, or no template can write them.
    """
    messages = _messages(fields.get("messages"))
    try:
        chosen = choose_format("auto", None, recorded, tokenizer, remedy=_REMEDY)
        return prompt_ids(messages, chosen, tokenizer)
    except InputError as error:
        raise ApiError(400, f"messages: {error}", param="messages") from error


def _messages(value: object) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ApiError(400, "messages is not a list of messages", param="messages")
    return [_message(each, f"messages[{index}]") for index, each in enumerate(value)]


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise ApiError(400, f"{where} is not an object", param=where)
    role = value.get("role")
    if role not in _ROLES:
        raise ApiError(400, f"{where}.role is {shown(role)}, not one of {', '.join(_ROLES)}", param=f"{where}.role")
    role = "system" if role == "developer" else role
    content = value.get("content")
    if isinstance(content, list):
        content = _joined(content, where)
    if not isinstance(content, str):
        raise ApiError(400, f"{where}.content is {shown(content)}, not text", param=f"{where}.content")
    return {"role": role, "content": content}


def _joined(parts: Sequence[object], where: str) -> str:
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise ApiError(400, f"{where}.content has a part that is not text", param=f"{where}.content")
    return "".join(map(str, texts))
