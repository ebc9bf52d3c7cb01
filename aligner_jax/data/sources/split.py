"""Splits examples into training and held-out ones that share no prompt, and removes repeats."""

from collections.abc import Sequence

from aligner_jax.data.sources.example import Example, Preference, Text

type _Prompt = tuple[tuple[str, str], ...]


def prompt_of(example: Example) -> _Prompt:
    """Returns role and content of every turn before the last answer, by which prompts are compared.

    A text has no prompt and is compared itself.
    """
    if isinstance(example.record, Text):
        return (("text", example.record.text),)
    return tuple((turn["role"], turn["content"]) for turn in example.messages_before_answer())


def split_by_prompt(examples: Sequence[Example], heldout_rows: int) -> tuple[list[Example], list[Example]]:
    """Returns training and held-out examples that share no prompt, both in the order of `examples`.

    Prompts are held out with all their examples, beginning with the last prompt, until at least `heldout_rows` examples
    are held out. If no prompt repeats, these are the last `heldout_rows` examples. If a held-out prompt also occurs
    earlier, its earlier examples are held out too.

    Args:
      examples: examples of one file.
      heldout_rows: minimum number of held-out examples; 0 holds out none.

    Returns:
      Training and held-out examples. The first is empty if the last `heldout_rows` examples include every prompt.
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
    """Returns the first of every set of equal records, because repeats add nothing to an evaluation."""
    first: dict[tuple, Example] = {}
    for example in examples:
        rejected = example.record.rejected if isinstance(example.record, Preference) else None
        turns = tuple((turn["role"], turn["content"]) for turn in example.messages())
        first.setdefault((turns, rejected), example)
    return list(first.values())
