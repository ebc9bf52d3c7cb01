"""What describes a source of examples: how its records are read, and where they come from."""

import dataclasses
from collections.abc import Callable, Mapping

from aligner_jax.data.sources.example import Conversation, Instruction, Preference

type Record = Instruction | Conversation | Preference
type Parse = Callable[[dict, str], Record]
"""Makes a record of a file's object; the text says where it stands. Raises InputError or `Dropped`."""


class Dropped(Exception):
    """A record that is well formed but not to be learned from; `args[0]` is the reason, in a few words."""


WANTED = "kto_tag"
"""LLaMA-Factory's name of what is false where an answer is one that is not wanted."""
IGNORED = frozenset(
    {
        "id", "idx", "index", "uid", "uuid", "_id", "prompt_id", "conversation_id", "source", "dataset",
        "origin", "split", "category", "categories", "topic", "task", "type", "lang", "language", "url",
        "license", "model", "score", "scores", "rating", "timestamp", "date", "hash", "sha256",
    }
)  # fmt: skip
"""Fields that name, place or rate a record, in the data of many."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A published data set, or a form of local files.

    Attributes:
      name: what `config.data.format` calls it.
      parse: from a file's object to a record.
      fits: whether an object looks like this source's, so that the format need not be named.
      record: what `parse` makes of a record without system prompt and history.
      about: a sentence on the data.
      homepage: where they are described.
      licence: of the data.
      root: the address that the names in `files` follow; "" where there is nothing to download.
      files: names of the published files by split.
      uses: the fields that `parse` reads.
      turn: where these are lists of turns: the fields of each that `parse` reads.
      ignores: fields of the published data that say nothing to learn from, and are passed over without a word, as
        `IGNORED` are.
      system: fields that may hold a system prompt; see `context.with_context`.
      history: fields that may hold earlier questions with their answers.
    """

    name: str
    parse: Parse
    fits: Callable[[dict], bool]
    record: type[Instruction] | type[Conversation] | type[Preference]
    about: str
    homepage: str = ""
    licence: str = ""
    root: str = ""
    files: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)
    uses: tuple[str, ...] = ()
    turn: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    system: tuple[str, ...] = ("system", "system_prompt")
    history: tuple[str, ...] = ("history",)


def check_worth(record: Record) -> None:
    """Raises `Dropped` if there is nothing to learn: an answer is empty, or both answers of a pair are the same.

    White space at the ends of an answer does not count.
    """
    if isinstance(record, Preference):
        answers = [record.chosen.strip(), record.rejected.strip()]
    elif isinstance(record, Instruction):
        answers = [record.output.strip()]
    else:
        learned = (turn for turn in record.messages if turn["role"] == "assistant" and turn.get("learned", True))
        answers = [turn["content"].strip() for turn in learned]
    if not all(answers):
        raise Dropped("empty answer")
    if isinstance(record, Preference) and answers[0] == answers[1]:
        raise Dropped("equal pair")
