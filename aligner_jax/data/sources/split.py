"""Held-out examples whose prompts are not trained on, each of them once."""

from collections.abc import Sequence

from aligner_jax.data.sources.example import Example, Preference

type _Prompt = tuple[tuple[str, str], ...]


def prompt_of(example: Example) -> _Prompt:
    """What two examples have in common that ask the same: role and content of every turn before the last answer."""
    return tuple((turn["role"], turn["content"]) for turn in example.messages_before_answer())


def split_by_prompt(examples: Sequence[Example], heldout_rows: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples, such that no prompt is in both, each in the order of `examples`.

    Whole prompts are held out, from the end, until they have at least `heldout_rows` examples. So where no prompt
    repeats, the held-out examples are the last `heldout_rows`; where prompts do, the examples of one that are further
    up are held out with it.

    Args:
      examples: of one file.
      heldout_rows: at least how many to hold out; 0 holds out none.

    Returns:
      Both; the first is empty if the last `heldout_rows` examples touch every prompt.
    """
    prompts = [prompt_of(example) for example in examples]
    rows: dict[_Prompt, int] = {}
    for prompt in prompts:
        rows[prompt] = rows.get(prompt, 0) + 1
    heldout: set[_Prompt] = set()
    count = 0
    for prompt in reversed(prompts):
        if count >= heldout_rows:
            break
        if prompt not in heldout:
            heldout.add(prompt)
            count += rows[prompt]
    train = [example for example, prompt in zip(examples, prompts, strict=True) if prompt not in heldout]
    return train, [example for example, prompt in zip(examples, prompts, strict=True) if prompt in heldout]


def without_repeats(examples: Sequence[Example]) -> list[Example]:
    """Every different record once, where it stands first: a repeated one says nothing more of who is judged by it."""
    first: dict[tuple, Example] = {}
    for example in examples:
        rejected = example.record.rejected if isinstance(example.record, Preference) else None
        turns = tuple((turn["role"], turn["content"]) for turn in example.messages())
        first.setdefault((turns, rejected), example)
    return list(first.values())
