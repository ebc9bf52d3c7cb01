"""Describes a source of examples: its fields, its parser and its published files."""

import dataclasses
from collections.abc import Callable, Mapping

from aligner_jax.data.sources.example import Conversation, Instruction, Preference, Record, Text

type Parse = Callable[[dict, str], Record]
"""Parses a JSON object into a record; the string is the object's "file:line". Raises InputError or `Dropped`."""


class Dropped(Exception):
    """Raised for a well-formed record that is not to be trained on; `args[0]` is the reason, in a few words."""


WANTED = "kto_tag"
"""LLaMA-Factory's field that is false if the answer is not wanted."""
IGNORED = frozenset(
    {
        "id", "idx", "index", "uid", "uuid", "_id", "prompt_id", "conversation_id", "source", "dataset",
        "origin", "split", "category", "categories", "topic", "task", "type", "lang", "language", "url",
        "license", "model", "score", "scores", "rating", "timestamp", "date", "hash", "sha256",
    }
)  # fmt: skip
"""Common fields that identify, locate or rate a record; they are not reported as unused."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A published data set, or a format of local files.

    Attributes:
      name: value of `config.data.format` that selects the source.
      parse: function from a JSON object to a record.
      fits: function that returns True if an object looks like this source's; used to detect the format.
      record: type that `parse` returns for records without system prompt and history.
      about: one sentence about the data.
      homepage: URL of the data's description.
      licence: licence of the data.
      root: URL prefix of the names in `files`; "" if there is nothing to download.
      files: names of the published files, by split.
      uses: fields that `parse` reads.
      turn: fields that `parse` reads in a turn, if the fields in `uses` are lists of turns.
      ignores: fields of the published data with nothing to learn; like `IGNORED`, they are not reported as unused.
      system: fields that may hold a system prompt; see `context.with_context`.
      history: fields that may hold earlier questions with their answers.
    """

    name: str
    parse: Parse
    fits: Callable[[dict], bool]
    record: type[Instruction] | type[Conversation] | type[Preference] | type[Text]
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
    """Raises `Dropped` if a record has nothing to learn: an empty answer, or a pair of equal answers.

    White space at the ends of an answer is ignored.
    """
    if isinstance(record, Preference):
        answers = [record.chosen.strip(), record.rejected.strip()]
    elif isinstance(record, Instruction):
        answers = [record.output.strip()]
    elif isinstance(record, Text):
        answers = [record.text.strip()]
    else:
        learned = (turn for turn in record.messages if turn["role"] == "assistant" and turn.get("learned", True))
        answers = [turn["content"].strip() for turn in learned]
    if not all(answers):
        raise Dropped("empty answer")
    if isinstance(record, Preference) and answers[0] == answers[1]:
        raise Dropped("equal pair")
