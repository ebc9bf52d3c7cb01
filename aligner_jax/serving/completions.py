"""`/v1/completions`: continues prompts."""

from typing import Any

from aligner_jax.files.fields import Fields
from aligner_jax.serving.answers import Asked
from aligner_jax.serving.choices import Piece
from aligner_jax.serving.errors import read
from aligner_jax.serving.options import LENGTHS, parse_options
from aligner_jax.serving.prompts import completion_prompts
from aligner_jax.serving.service import Service

_DEFAULT_TOKENS = 16


class Completions:
    """OpenAI's API for completions."""

    id_prefix, object, piece_object = "cmpl", "text_completion", "text_completion"

    def parse(self, fields: Fields, service: Service) -> Asked:
        """Parses a request. Raises ApiError."""
        most = service.engine.engine.options.alternatives or 0
        alternatives = None
        if fields.has("logprobs"):
            alternatives = read(fields.integer, "logprobs", least=0, most=most)
        if not any(map(fields.has, LENGTHS)):
            default = min(_DEFAULT_TOKENS, service.limits.output_tokens)
            fields = Fields({**fields.values, "max_tokens": default}, fields.file)
        options = parse_options(fields, service.limits, alternatives=alternatives)
        prompts = completion_prompts(fields, service.tokenizer, service.limits.choices)
        return Asked(options, prompts, service.models.stored(options.model))

    def choice(self, index: int, piece: Piece, has_logprobs: bool) -> dict[str, Any]:
        """Returns a whole choice or a piece of one: both have the same form."""
        logprobs = _logprobs(piece) if has_logprobs else None
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.end}

    def pieces(self, index: int, piece: Piece, has_logprobs: bool, is_first: bool) -> list[dict[str, Any]]:
        """Returns the parts of a streamed choice."""
        return [self.choice(index, piece, has_logprobs)]


def _logprobs(piece: Piece) -> dict[str, Any]:
    found = piece.logprobs
    return {
        "tokens": [x.text for x in found],
        "token_logprobs": [x.logprob for x in found],
        "top_logprobs": [_by_text(x.alternatives) for x in found],
        "text_offset": [x.offset for x in found],
    }


def _by_text(alternatives: tuple[tuple[str, float], ...]) -> dict[str, float]:
    """Returns log-probabilities by text; of tokens with one text, that of the most probable one."""
    return dict(reversed(alternatives))
