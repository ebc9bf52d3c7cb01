"""What is trained on and what is held out, the same for every arm; part of compare_methods.py."""

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
"""Each task's file in the folder --data."""
_CHARACTERS_A_TOKEN = 4.0


@dataclasses.dataclass(frozen=True)
class Part:
    """Examples as a file of their own, whose name holds a hash of its content: other examples are another file."""

    path: Path
    text: str
    examples: int
    tokens: float
    """About how many all of them have, with the chat template's; of preferences, both documents of a pair."""

    def write(self) -> None:
        """Puts the file in its place. Raises InputError: it cannot be written."""
        if not self.path.exists():
            write_atomically(self.path, self.text)


@dataclasses.dataclass(frozen=True)
class Split:
    """A task's examples."""

    train: Part
    heldout: Part


def split(
    task: str, file: Path, heldout: int, folder: Path, *, tuning: bool = False, tuning_heldout: int | None = None
) -> Split:
    """The last examples held out, by prompt; for `tuning` others before those, and the last ones are left out.

    Preferences are counted by prompt: they repeat prompts and whole pairs, so that `heldout` prompts are held out and
    judged by one pair each. These are the file's first prompts and those for `tuning` its last, so that no change of a
    number lets the one reach into the other.

    Args:
      tuning_heldout: how many others; None: as many.

    Raises:
      InputError: the file cannot be read, is of another kind, or has too few examples.
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
    """Examples of neither the first nor the last prompts, and one of each of the last; 0: of the first."""
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
