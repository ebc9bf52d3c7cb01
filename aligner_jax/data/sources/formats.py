"""Ends the errors about formats with the list of what is read."""

from aligner_jax.errors import MAX_CHARACTERS, InputError, one_line

READ = (
    "; read are JSON, CSV, TSV, Parquet and text with instruction/output, prompt/completion, question/answer, "
    "messages, chosen/rejected or text: docs/data.md"
)
"""End of every error about a format."""


class FormatError(InputError):
    """Data of no known format; the message ends with `READ`."""

    def __init__(self, problem: object) -> None:
        super().__init__(one_line(str(problem), MAX_CHARACTERS - len(READ)) + READ)
