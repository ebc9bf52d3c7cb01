"""Argparse types and defaults that several commands share; a type's name stands in argparse's messages."""

MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The model that scripts/quickstart.sh gets."""


def names(known: tuple[str, ...]):
    """Some of the known names, with commas between them."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise ValueError
        return chosen

    parse.__name__ = f"choice (there are {', '.join(known)})"
    return parse


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


positive.__name__ = "whole number above 0"
