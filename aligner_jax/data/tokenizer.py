"""Encodes text as token ids and decodes them. `tokenizer_files` loads a tokenizer from any kind of vocabulary file."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from aligner_jax.data import chat_template
from aligner_jax.data.token_ids import check_ids
from aligner_jax.errors import InputError

# Tokens that end an assistant turn or a document in published models. A chat model stops at its own end token, which
# its files do not always name as EOS.
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
    """Refuses text with lone surrogates, which stand for bytes that are not UTF-8. Raises InputError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds half a surrogate pair at its character {error.start + 1}, as where bytes are not UTF-8"
        ) from None


class Backend(Protocol):
    """Interface of a vocabulary's implementation.

    Attributes:
      vocab_size: the largest token id plus one.
      special_ids: ids of special tokens, which `Tokenizer.decode` leaves out.
    """

    vocab_size: int
    special_ids: frozenset[int]

    def token_id(self, token: str) -> int | None: ...

    def token(self, token_id: int) -> str: ...

    def encode(self, text: str, after: int | None) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary with its special tokens and chat template; compared and hashed by identity.

    Attributes:
      backend: implementation of the vocabulary.
      bos_id, eos_id: ids of BOS and EOS; None if the tokenizer has none.
      stop_ids: EOS and the tokens that end an assistant turn.
      pad_id: id of the declared padding token, else EOS, else 0.
      add_bos: True if the model's files ask for BOS; `encode` adds it only when its `bos` is True.
      chat_template: the model's chat template; None if it has none.
      unk_token: text of the unknown token, for chat templates.
      num_embeddings: rows of the base's embedding, which may be fewer than `vocab_size`; None without a base.
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
        """The largest token id plus one; the base's embedding may have more rows."""
        return self.backend.vocab_size

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, after: int | None = None) -> list[int]:
        """Returns the token ids of `text`. Special tokens in it are parsed, as Hugging Face's tokenizers do.

        Args:
          text: text to encode.
          bos: puts BOS first, unless the text begins with it, as most rendered chats do. Callers pass
            `tokenizer.add_bos`, so that BOS is added by one rule.
          eos: puts EOS last.
          after: id of the token before the text; None if the text begins the sequence. A vocabulary that puts a space
            before a text (SentencePiece's dummy prefix) puts none before a text that continues another.

        Raises:
          InputError: `bos` or `eos` is True and the tokenizer has no such token; the text has a lone surrogate; or see
            `check_ids`.
        """
        if (bos and self.bos_id is None) or (eos and self.eos_id is None):
            raise InputError(f"the tokenizer has no {'BOS' if bos and self.bos_id is None else 'EOS'} token")
        try:
            ids = self.backend.encode(text, after)
        except InputError:
            # The package reports a lone surrogate as a type error. They are rare, so texts are not checked beforehand.
            check_encodable(text)
            raise
        if bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        if eos and self.eos_id is not None:
            ids = [*ids, self.eos_id]
        self.check_ids(ids)
        return ids

    def check_ids(self, ids: Sequence[int]) -> None:
        """Refuses token ids beyond the base's embedding; without a base it accepts all.

        `encode` calls it. Callers check token ids of other origin.

        Raises:
          InputError: an id is out of range; the message names the token.
        """
        if self.num_embeddings is not None:
            check_ids(ids, self.num_embeddings, token=self.backend.token, vocab_size=self.vocab_size)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids, without special tokens and without ids beyond the vocabulary."""
        special, size = self.backend.special_ids, self.vocab_size
        return self.backend.decode([i for i in map(int, ids) if 0 <= i < size and i not in special])

    def stream_decoder(self) -> Callable[[int], str]:
        """Returns a function that takes token ids one by one and returns the text that each adds.

        The concatenated texts equal `decode` of all ids, except for an incomplete UTF-8 character at the end, which is
        held back.
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
            # Decoding all ids every time would be quadratic. A window begins only with a token of visible text, because
            # leading spaces decode differently from inner ones.
            if len(window) > 16 and (last := self.decode(window[-1:])).strip():
                window, printed = window[-1:], len(last)
            return new

        return step

    def render_chat(self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = False) -> str:
        """Returns a conversation as the chat template writes it, with special tokens, and BOS if the template has it.

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
    """Returns a Tokenizer; adds EOS and the vocabulary's special end tokens to `stop_ids`."""
    ends = {backend.token_id(name) for name in END_TOKENS} & backend.special_ids
    stops = {*stop_ids, *ends} | ({eos_id} if eos_id is not None else set())
    if pad_id is None:
        pad_id = 0 if eos_id is None else eos_id
    add_bos = add_bos and bos_id is not None
    return Tokenizer(
        backend, bos_id, eos_id, frozenset(i for i in stops if i is not None), pad_id, add_bos, chat_template, unk_token
    )
