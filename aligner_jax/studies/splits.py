"""Splits a task's examples into training and held-out files, the same for every arm; part of the studies' commands."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from aligner_jax.data.sources import Example, Preference, load_examples, prompt_of, split_by_prompt, without_repeats
from aligner_jax.errors import InputError
from aligner_jax.runtime.files import write_atomically

FILES = {
    "alpaca": "sft/alpaca_random_9k.json",
    "gsm8k": "reasoning/gsm8k/train.jsonl",
    "pku": "pref/pku_saferlhf_dpo_5k.json",
}
"""Data file of a task, relative to the folder --data."""
_CHARACTERS_A_TOKEN = 4.0


@dataclasses.dataclass(frozen=True)
class Part:
    """Examples in a file whose name includes a hash of its content, so that other examples get another file."""

    path: Path
    text: str
    examples: int
    tokens: float
    """Estimated number of tokens of all examples, with those of the chat template; a pair counts both documents."""

    def write(self) -> None:
        """Writes the file unless it exists. Raises InputError if it cannot be written."""
        if not self.path.exists():
            write_atomically(self.path, self.text)


@dataclasses.dataclass(frozen=True)
class Split:
    """Training and held-out examples of a task."""

    train: Part
    heldout: Part


def split(
    task: str, file: Path, heldout: int, folder: Path, *, tuning: bool = False, tuning_heldout: int | None = None
) -> Split:
    """Splits a file's examples by prompt, so that training and held-out examples share none.

    At least `heldout` examples are held out from the end. With `tuning`, these are left out entirely, and the examples
    before them are held out instead.

    Preference data repeat prompts and whole pairs, so they are counted by prompt: `heldout` prompts are held out, with
    one pair each. These are the file's first prompts, and those for `tuning` are its last, so that neither set can
    reach into the other when its size is changed.

    Args:
      task: key of `FILES`.
      file: data file of the task.
      heldout: number of held-out examples, or of held-out prompts for "pku".
      folder: folder of the files that `Part.write` writes.
      tuning: True to hold out the examples for tuning.
      tuning_heldout: number of examples that are held out for tuning; None means `heldout`.

    Raises:
      InputError: the file cannot be read, holds another kind of records, or has too few examples.
    """
    examples = load_examples(file, "pku_saferlhf" if task == "pku" else "auto")
    for example in examples:
        if isinstance(example.record, Preference) != (task == "pku"):
            raise InputError(f"{example.where} is not of the kind of the task {task!r}")
    if task == "pku":
        train, last = _prompts_held_out(examples, heldout, tuning_heldout or heldout if tuning else 0)
    else:
        train, last = split_by_prompt(examples, heldout)
        if tuning:
            train, last = split_by_prompt(train, tuning_heldout or heldout)
    if not train or not last:
        raise InputError(f"{file} has {len(examples)} examples, too few to hold out {heldout}")
    return Split(_part(f"{task}-train", train, folder), _part(f"{task}-heldout", last, folder))


def _prompts_held_out(
    examples: Sequence[Example], first: int, last: int
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Returns training examples, and one per held-out prompt: the last prompts, or the first if `last` is 0."""
    by_prompt: dict[tuple, list[Example]] = {}
    for example in without_repeats(examples):
        by_prompt.setdefault(prompt_of(example), []).append(example)
    of_prompts = list(by_prompt.values())
    end = len(of_prompts) - last
    heldout = of_prompts[max(end, first) :] if last else of_prompts[:first]
    return [example for some in of_prompts[first:end] for example in some], [some[0] for some in heldout]


def _part(name: str, examples: Sequence[Example], folder: Path) -> Part:
    text = "".join(json.dumps(_record(example), ensure_ascii=False) + "\n" for example in examples)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Part(folder / f"{name}-{digest}.jsonl", text, len(examples), sum(map(_tokens, examples)))


def _record(example: Example) -> dict:
    if isinstance(example.record, Preference):
        return {"prompt": example.question, "response": [example.record.chosen, example.record.rejected]}
    return {"instruction": example.question, "input": "", "output": example.answer}


def _tokens(example: Example) -> float:
    template = 12
    tokens = template + (len(example.question) + len(example.answer)) / _CHARACTERS_A_TOKEN
    if isinstance(example.record, Preference):
        tokens += template + (len(example.question) + len(example.record.rejected)) / _CHARACTERS_A_TOKEN
    return tokens
