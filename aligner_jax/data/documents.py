"""Tokenizes examples into documents: token ids and a loss mask."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, TypedDict

import numpy as np
from jaxtyping import Bool, Int32

from aligner_jax.data.sources.example import Example
from aligner_jax.data.templates import segments
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError


class Document(TypedDict):
    """Token ids of one example; the loss mask is True at targets."""

    tokens: Int32[np.ndarray, " t"]
    loss_mask: Bool[np.ndarray, " t"]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts of kept, truncated and dropped examples.

    Attributes:
      documents: kept examples.
      tokens: tokens of all documents.
      targets: tokens that are targets.
      longest: tokens of the longest document.
      truncated: documents truncated to the length of a row or of the base's context.
      dropped: examples dropped because they exceed that length.
      without_targets: examples dropped because truncation left no target.
      equal: pairs dropped because both documents have the same tokens, possibly after truncation.
      unit: plural noun for the kept examples in messages: "documents" or "pairs".
    """

    documents: int
    tokens: int
    targets: int
    longest: int
    truncated: int = 0
    dropped: int = 0
    without_targets: int = 0
    equal: int = 0
    unit: str = "documents"

    @property
    def mean_tokens(self) -> float:
        """Mean number of tokens per document."""
        return self.tokens / max(self.documents, 1)

    @property
    def target_share(self) -> float:
        """Share of the tokens that are targets."""
        return self.targets / max(self.tokens, 1)

    def __str__(self) -> str:
        left_out = {
            "cut to the row's length": self.truncated,
            "longer than a row and dropped": self.dropped,
            "dropped because nothing of the answer was left": self.without_targets,
            "dropped because both answers are the same tokens": self.equal,
        }
        kept = (
            f"{self.documents:,} {self.unit}, {self.tokens:,} tokens (mean {self.mean_tokens:.0f}, longest "
            f"{self.longest:,}), {self.target_share:.0%} of them targets"
            if self.documents
            else f"no {self.unit}"
        )
        return kept + "".join(f"; {count:,} {what}" for what, count in left_out.items() if count)


def tokenize_examples(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    template: str,
    *,
    sequence_length: int,
    context_length: int | None = None,
    loss_on: Literal["answers", "all"] = "answers",
    overlong: Literal["error", "truncate", "drop"] = "error",
    system: str | None = None,
) -> tuple[list[Document], Summary]:
    """Returns the documents that fit a row and the context, in the examples' order, and a summary of all examples.

    BOS is the first token if the tokenizer's files ask for it. EOS is the last target, unless the template ends the
    answer with another stop token. No token spans the border between prompt and answer, so a prompt has the same
    tokens as in generation.

    Args:
      examples: examples from `load_examples`.
      tokenizer: tokenizer of the base.
      template: one of `templates.TEMPLATES`.
      sequence_length: tokens per row.
      context_length: positions that the base was trained for, less those that an adapter takes; None sets no limit. A
        row may be longer, since positions restart at each document.
      loss_on: "answers" makes targets of the answers with their end tokens; "all" of every token, as the paper's code
        does.
      overlong: treatment of an example that exceeds a row or the context: "error" raises, "truncate" cuts its end (as
        the paper's code does), "drop" leaves it out.
      system: see `templates.segments`.

    Raises:
      InputError: an example does not fit the template; one is too long and `overlong` is "error"; or none is left.
    """
    documents: list[Document] = []
    truncated = dropped = without_targets = 0
    most = sequence_length if context_length is None else min(sequence_length, context_length)
    for example in examples:
        document = make_document(example, tokenizer, template, loss_on=loss_on, system=system)
        length = len(document["tokens"])
        if length > most:
            if overlong == "error":
                if most < sequence_length:
                    raise InputError(beyond_context(example.where, "the example", length, most))
                raise InputError(
                    f"{example.where}: the example has {length} tokens and a row {sequence_length}; raise "
                    "data.sequence_length, or set data.overlong to 'truncate' or 'drop'"
                )
            if overlong == "drop":
                dropped += 1
                continue
            document = Document(tokens=document["tokens"][:most], loss_mask=document["loss_mask"][:most])
            if not document["loss_mask"][1:].any():
                without_targets += 1
                continue
            truncated += 1
        documents.append(document)
    if examples and not documents:
        raise InputError(
            f"none of the {len(examples)} examples is left: {dropped} are longer than {most} tokens, which a row "
            f"or the context has, and of {without_targets} nothing of the answer fits"
        )
    summary = Summary(
        documents=len(documents),
        tokens=sum(len(document["tokens"]) for document in documents),
        targets=sum(int(document["loss_mask"].sum()) for document in documents),
        longest=max((len(document["tokens"]) for document in documents), default=0),
        truncated=truncated,
        dropped=dropped,
        without_targets=without_targets,
    )
    return documents, summary


def beyond_context(where: str, what: str, length: int, context_length: int) -> str:
    """Returns the error message for a document that exceeds the base's context."""
    return (
        f"{where}: {what} has {length} tokens, and the base's context {context_length} (less what an adapter takes of "
        "it); set data.overlong to 'truncate' or 'drop', or choose a base with a longer context"
    )


def digest(documents: Iterable[Document]) -> str:
    """Returns the SHA-256 of the documents' tokens and loss masks, in order."""
    sha256 = hashlib.sha256()
    for document in documents:
        tokens = document["tokens"]
        sha256.update(len(tokens).to_bytes(8) + tokens.tobytes() + document["loss_mask"].tobytes())
    return sha256.hexdigest()


def _check_said(example: Example, text: str, system: str | None) -> None:
    """Refuses a chat template that leaves out a turn of another role than user and assistant."""
    messages = example.messages()
    if system is not None and not any(message["role"] == "system" for message in messages):
        messages.append({"role": "system", "content": system})
    for message in messages:
        if message["role"] not in ("user", "assistant") and message["content"].strip() not in text:
            raise InputError(
                f"{example.where}: the template leaves out what {message['role']!r} says: take that out of the data, "
                "or choose a template with a place for it"
            )


def make_document(
    example: Example,
    tokenizer: Tokenizer,
    template: str,
    *,
    loss_on: Literal["answers", "last_answer", "all"] = "answers",
    system: str | None = None,
) -> Document:
    """Returns the document of one example, of any length. The other arguments are those of `tokenize_examples`.

    Args:
      loss_on: also "last_answer", which makes targets of a conversation's last answer only.

    Raises:
      InputError: the example does not fit the template, or neither it nor the tokenizer ends the answer.
    """
    tokens: list[int] = []
    mask: list[bool] = []
    after = None
    pieces = segments(example, tokenizer, template, system)
    _check_said(example, "".join(text for text, _ in pieces), system)
    last = max((i for i, (_, is_target) in enumerate(pieces) if is_target), default=-1)
    for i, (text, is_target) in enumerate(pieces):
        try:
            ids = tokenizer.encode(text, bos=tokenizer.add_bos and i == 0, after=after)
        except InputError as error:
            raise InputError(f"{example.where}: {error}") from error
        tokens += ids
        counts = loss_on == "all" or (is_target and (loss_on == "answers" or i == last))
        mask += [counts] * len(ids)
        after = tokens[-1] if text and ids else after
    if not tokens or tokens[-1] not in tokenizer.stop_ids or not mask[-1]:
        if tokenizer.eos_id is None:
            raise InputError(
                f"{example.where}: the answer would have no end, since the tokenizer's files name no EOS token: put "
                "tokenizer_config.json, where it stands, beside the base's weights"
            )
        tokens.append(tokenizer.eos_id)
        mask.append(True)
    # `encode` checks the ids of a text; BOS and EOS are added outside it.
    tokenizer.check_ids(tokens)
    return Document(tokens=np.asarray(tokens, np.int32), loss_mask=np.asarray(mask, bool))
