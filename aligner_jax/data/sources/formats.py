"""Errors about data: an unknown format, which ends with the list of what is read, and damage, which does not."""

from aligner_jax.errors import MAX_CHARACTERS, InputError, one_line

READ = (
    "; read are JSON, CSV, TSV, Parquet and text with instruction/output, prompt/completion, question/answer, "
    "messages, chosen/rejected or text: docs/data.md"
)
"""End of every error about a format."""


class DamageError(InputError):
    """A file that is damaged, cut short or made to fill the memory, whatever its format."""


class FormatError(InputError):
    """Data of no known format; the message ends with `READ`."""

    def __init__(self, problem: object) -> None:
        super().__init__(one_line(str(problem), MAX_CHARACTERS - len(READ)) + READ)
