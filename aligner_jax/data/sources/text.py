"""Plain texts: {"text": …}, and the documents of .txt files."""

from aligner_jax.data.sources.example import Text
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.values import text_field

_OTHERS = (
    "instruction", "prompt", "question", "query", "input", "messages", "conversations",
    "chosen", "rejected", "completion", "response", "answer", "output",
)  # fmt: skip
"""Fields of other formats; Alpaca's `text`, for example, repeats the prompt and the answer."""


def parse(record: dict, where: str) -> Text:
    """Parses a text, all of which is learned; other fields are ignored.

    Raises:
      InputError: `text` is missing or not text.
    """
    return Text(text_field(record, "text", where))


TEXT = Source(
    name="text",
    parse=parse,
    fits=lambda record: "text" in record and not any(name in record for name in _OTHERS),
    record=Text,
    uses=("text",),
    system=(),
    history=(),
    about="Texts without prompts, such as books or notes; everything is learned and no template is applied.",
)
