"""`/v1/chat/completions`: answers conversations."""

from typing import Any

from aligner_jax.files.fields import Fields
from aligner_jax.serving.answers import Asked
from aligner_jax.serving.choices import Piece
from aligner_jax.serving.errors import ApiError, read
from aligner_jax.serving.options import parse_options
from aligner_jax.serving.prompts import chat_prompt
from aligner_jax.serving.service import Service


class Chats:
    """OpenAI's API for chats."""

    id_prefix, object, piece_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def parse(self, fields: Fields, service: Service) -> Asked:
        """Parses a request. Raises ApiError."""
        most = service.engine.engine.options.alternatives or 0
        alternatives = None
        if read(fields.flag, "logprobs"):
            alternatives = read(fields.integer, "top_logprobs", 0, least=0, most=most)
        elif fields.has("top_logprobs"):
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        options = parse_options(fields, service.limits, alternatives=alternatives)
        recorded = service.models.recorded(options.model)
        adapters = tuple((each.adapter, each.weight) for each in recorded.values())
        return Asked(options, [chat_prompt(fields, recorded, service.tokenizer)], adapters)

    def choice(self, index: int, piece: Piece, has_logprobs: bool) -> dict[str, Any]:
        """Returns a whole choice."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": index, "message": message, **_ending(piece, has_logprobs)}

    def pieces(self, index: int, piece: Piece, has_logprobs: bool, is_first: bool) -> list[dict[str, Any]]:
        """Returns the parts of a streamed choice: the role comes first, and the end last."""
        shown: list[dict[str, Any]] = []
        if is_first:
            role = {"role": "assistant", "content": ""}
            shown.append({"index": index, "delta": role, "logprobs": None, "finish_reason": None})
        if piece.text or piece.logprobs:
            body = piece._replace(end=None)
            shown.append({"index": index, "delta": {"content": piece.text}, **_ending(body, has_logprobs)})
        if piece.end is not None:
            shown.append({"index": index, "delta": {}, "logprobs": None, "finish_reason": piece.end})
        return shown


def _ending(piece: Piece, has_logprobs: bool) -> dict[str, Any]:
    logprobs = None
    if has_logprobs:
        content = [
            {**_token(x.text, x.logprob), "top_logprobs": [_token(*each) for each in x.alternatives]}
            for x in piece.logprobs
        ]
        logprobs = {"content": content, "refusal": None}
    return {"logprobs": logprobs, "finish_reason": piece.end}


def _token(text: str, logprob: float) -> dict[str, Any]:
    # A token with a part of a character has no text of its own, so its bytes are not known here.
    is_whole = "\N{REPLACEMENT CHARACTER}" not in text
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if is_whole else None}
