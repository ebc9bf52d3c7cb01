"""Argparse types and defaults that several commands share. A type's `__name__` appears in argparse's messages."""

MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
"""Path of the model that scripts/quickstart.sh downloads."""


def names(known: tuple[str, ...]):
    """Returns an argparse type for a comma-separated list of known names."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise ValueError
        return chosen

    parse.__name__ = f"choice (there are {', '.join(known)})"
    return parse


def positive(text: str) -> int:
    """Parses an integer above 0."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


positive.__name__ = "whole number above 0"
