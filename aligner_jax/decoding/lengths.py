"""Lengths that prompts are padded to, and numbers of slots: few values, so that few programs are compiled."""

SHORTEST = 16
LONG, LONG_MULTIPLE = 512, 128
"""Numbers of slots above `LONG` are multiples of `LONG_MULTIPLE`, which the attention kernels support."""
TOKENS_AT_ONCE = 512
"""Tokens of prompts that one program prefills on a device, other than a CPU: fewer leave its matrix units idle."""


def padded_length(length: int) -> int:
    """Returns the length that a part of a prompt is padded to: 16, 32, 48, 64, 96, 128, 192, …

    Consecutive lengths differ by a factor of at most 1.5, but for the first.
    """
    size = SHORTEST
    while size < length:
        # Powers of two, and from 32 on the numbers halfway between them.
        halfway = size & (size - 1) == 0 and size > SHORTEST
        size = size * 3 // 2 if halfway else 2 * size if size == SHORTEST else size // 3 * 4
    return size


def padded_slots(length: int) -> int:
    """Returns the number of slots for texts of `length` tokens: `padded_length`, or above 512 a multiple of 128."""
    return padded_length(length) if length <= LONG else -(-length // LONG_MULTIPLE) * LONG_MULTIPLE


def slots_of(longest_prompt: int, new_tokens: int, context: int) -> int:
    """Returns the number of slots for prompts and their new tokens; it is the same for all prompts padded alike.

    Args:
      longest_prompt: tokens of the longest prompt.
      new_tokens: new tokens at most.
      context: context of the model, which prompts and new tokens do not exceed.
    """
    return padded_slots(min(padded_slots(longest_prompt) + new_tokens, context))


def prompts_at_once(width: int, rows: int, parts: int, platform: str) -> int:
    """Returns the number of prompts that one program prefills; a multiple of `parts`.

    It depends on the padded length alone, so that a prompt's result does not depend on the prompts beside it.

    Args:
      width: padded length of the prompts.
      rows: rows of the engine.
      parts: number of parts into which a mesh splits the rows.
      platform: "cpu", "gpu" or "tpu". A CPU takes as long for two prompts as for one after the other.
    """
    each = 1 if platform == "cpu" else TOKENS_AT_ONCE // width
    return parts * max(1, min(each, rows // parts))
