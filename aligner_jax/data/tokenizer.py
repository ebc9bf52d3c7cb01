"""Tokenizer: text to token ids and back. `tokenizer_files` loads one from any file that holds a vocabulary."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from aligner_jax.data import chat_template
from aligner_jax.data.token_ids import check_ids
from aligner_jax.errors import InputError

# Tokens that end an assistant's turn or a document in published models: a model fine-tuned for chat stops at its own
# one, which its files do not always name as EOS.
END_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|eot|>",
    "<end_of_turn>",
)


def check_encodable(text: str) -> None:
    """Refuses what is no text: bytes that are not UTF-8 come as halves of surrogate pairs. Raises InputError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds half a surrogate pair at its character {error.start + 1}, as where bytes are not UTF-8"
        ) from None


class Backend(Protocol):
    """What a vocabulary's implementation supplies; `special_ids` are the tokens that `decode` leaves out."""

    vocab_size: int
    special_ids: frozenset[int]

    def token_id(self, token: str) -> int | None: ...

    def token(self, token_id: int) -> str: ...

    def encode(self, text: str, after: int | None) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary with its special tokens and chat template; equal and hashed by identity.

    `add_bos` is what the model's files ask for; nothing here applies it unasked. `stop_ids` are EOS and the tokens
    that end an assistant's turn. `pad_id` is the declared padding token, else EOS, else 0. `unk_token` is for chat
    templates. `num_embeddings` is how many tokens the base has embeddings of, which may be fewer than the tokenizer
    has; None while it is no base's.
    """

    backend: Backend
    bos_id: int | None
    eos_id: int | None
    stop_ids: frozenset[int]
    pad_id: int
    add_bos: bool
    chat_template: str | None = None
    unk_token: str = ""
    num_embeddings: int | None = None

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id; the model's embedding may have more rows than that."""
        return self.backend.vocab_size

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, after: int | None = None) -> list[int]:
        """Token ids of `text`; special tokens written in it are parsed, as in Hugging Face's tokenizers.

        Where the vocabulary puts a space before a text (SentencePiece's dummy prefix), a text that continues another
        gets none: `after` is the id of the token before it, None where the text begins the sequence.

        Args:
          text: to encode.
          bos: put BOS first, unless the text begins with it: a rendered chat mostly does. Callers give
            `tokenizer.add_bos`, so this is the one rule for when BOS is added.
          eos: put EOS last.
          after: see above.

        Raises:
          InputError: `bos` or `eos` is asked for and the tokenizer has none; the text holds half a surrogate pair; or
            see `check_ids`.
        """
        if (bos and self.bos_id is None) or (eos and self.eos_id is None):
            raise InputError(f"the tokenizer has no {'BOS' if bos and self.bos_id is None else 'EOS'} token")
        try:
            ids = self.backend.encode(text, after)
        except InputError:
            # The package's own words for half a surrogate pair, which nearly no text has, are of its types.
            check_encodable(text)
            raise
        if bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        if eos and self.eos_id is not None:
            ids = [*ids, self.eos_id]
        self.check_ids(ids)
        return ids

    def check_ids(self, ids: Sequence[int]) -> None:
        """Refuses ids that the tokenizer's base has no embedding of; without a base all are taken.

        `encode` does so itself. Ids that come from elsewhere go through here.

        Raises:
          InputError: names the token.
        """
        if self.num_embeddings is not None:
            check_ids(ids, self.num_embeddings, token=self.backend.token, vocab_size=self.vocab_size)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, without special tokens and without ids the vocabulary does not have."""
        special, size = self.backend.special_ids, self.vocab_size
        return self.backend.decode([i for i in map(int, ids) if 0 <= i < size and i not in special])

    def stream_decoder(self) -> Callable[[int], str]:
        """A function that takes one id after another and returns the text each adds.

        The pieces joined are `decode` of all ids, but for an unfinished UTF-8 character at the end: one is held back
        until it is complete.
        """
        window: list[int] = []
        printed = 0

        def step(token_id: int) -> str:
            nonlocal printed, window
            window.append(token_id)
            text = self.decode(window)
            if text.endswith("\N{REPLACEMENT CHARACTER}"):
                return ""
            new = text[printed:]
            printed = len(text)
            # Decoding all ids each time would be quadratic. A window may begin only with a token of visible text,
            # because leading spaces decode differently from inner ones.
            if len(window) > 16 and (last := self.decode(window[-1:])).strip():
                window, printed = window[-1:], len(last)
            return new

        return step

    def render_chat(self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = False) -> str:
        """The conversation as the model's chat template writes it, special tokens included (BOS too where it has one).

        Raises:
          InputError: there is no chat template, it is malformed, or it refuses the conversation.
        """
        if self.chat_template is None:
            raise InputError("the tokenizer has no chat template")
        names = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        variables = {name: "" if i is None else self.backend.token(i) for name, i in names.items()}
        variables["unk_token"] = self.unk_token
        return chat_template.render(self.chat_template, messages, add_generation_prompt, variables)


def make_tokenizer(
    backend: Backend,
    *,
    bos_id: int | None,
    eos_id: int | None,
    pad_id: int | None,
    add_bos: bool,
    stop_ids: Iterable[int] = (),
    chat_template: str | None = None,
    unk_token: str = "",
) -> Tokenizer:
    """A Tokenizer with `stop_ids` completed by EOS and by the end tokens that the vocabulary marks as special."""
    ends = {backend.token_id(name) for name in END_TOKENS} & backend.special_ids
    stops = {*stop_ids, *ends} | ({eos_id} if eos_id is not None else set())
    if pad_id is None:
        pad_id = 0 if eos_id is None else eos_id
    add_bos = add_bos and bos_id is not None
    return Tokenizer(
        backend, bos_id, eos_id, frozenset(i for i in stops if i is not None), pad_id, add_bos, chat_template, unk_token
    )
