"""Files of training examples, by format."""

from collections.abc import Callable
from pathlib import Path

from aligner_jax.data.sources import alpaca, messages
from aligner_jax.data.sources.example import Conversation, Example, Instruction, Message, Preference
from aligner_jax.data.sources.records import read_records
from aligner_jax.errors import InputError

__all__ = ["SOURCES", "Conversation", "Example", "Instruction", "Message", "Preference", "load_examples"]

SOURCES: dict[str, Callable[[dict, str], Instruction | Conversation]] = {
    "alpaca": alpaca.parse,
    "messages": messages.parse,
}


def load_examples(path: Path | str, format: str = "auto") -> list[Example]:
    """The examples of a file: a JSON array of objects, or one object a line.

    Args:
      path: the file.
      format: one of `SOURCES`; "auto": "messages" if the first record has that field, else "alpaca".

    Raises:
      InputError: the format is unknown, or the file cannot be read, is empty or has a record that does not fit; the
        sentence names file and line.
    """
    if format not in ("auto", *SOURCES):
        raise InputError(f"the data format {format!r} is unknown; there are auto, {', '.join(SOURCES)}")
    examples = []
    for record, where in read_records(path):
        if format == "auto":
            format = "messages" if "messages" in record else "alpaca"
        examples.append(Example(SOURCES[format](record, where), where))
    return examples
