"""MMLU, zero-shot and generated: the model writes out the text of its choice, which must equal the right choice's.

Prompts, decoding and matching are those of the Aligner authors' script for MMLU, which gave the paper's table:

- The prompt shows the choices as a Python list and ends in "The correct answer is:".
- At most 100 tokens are sampled at temperature 0.1 with top-k 200. The answer ends at "###".
- White space, full stops and single quotes at the ends of answer and choice are removed, and square brackets at the
  ends of the choice. The two must then be equal.
- The base alone has another prompt, which asks for the choice and nothing else. Its answers are matched in the same
  way.

The accuracy thus depends on the form of the answers as much as on knowledge. For this reason the paper's numbers are
near chance and still rise with training.
"""

import dataclasses
from typing import Literal

from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals.generating import Prompt, encoded, generate
from aligner_jax.evals.interface import Evaluation, Outcome, Run
from aligner_jax.evals.interval import wilson_interval
from aligner_jax.evals.mmlu_questions import MultipleChoice, Split, read_mmlu
from aligner_jax.runtime.fields import did_you_mean, number
from aligner_jax.runtime.tables import Table

_HEAD = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction: The following are multiple choice questions (with answers) about {subject}.\n{question}\n "
)
PROMPTS = {
    "adapted": _HEAD + "Pick the correct answer from the choice list. \n### Input: The choices are: \n{choices}\n\n"
    "### Response: \nThe correct answer is:",
    "base": _HEAD
    + "Pick ONE correct answer from the choice list, and answer with ONLY the choice you pick and NOTHING "
    "else. \n### Input: The choices are: \n{choices}\n\n### Response: \nThe single correct answer is:",
}
END = "###"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MmluGeneratedOptions:
    """Options of the evaluation "mmlu_generated".

    Attributes:
      path: MMLU's zip or folder; see `read_mmlu`.
      split: split of the questions.
      subjects: subjects to ask; empty means all 57.
      prompt: a key of `PROMPTS`; "auto" means "base" for a base without an adapter, else "adapted".
      temperature: sampling temperature; 0 is greedy.
      top_k: number of most probable tokens to sample from; 0 means all.
      max_new_tokens: tokens of an answer at most.
    """

    path: str
    split: Split = "test"
    subjects: tuple[str, ...] = ()
    prompt: Literal["auto", "adapted", "base"] = "auto"
    temperature: float = number(0.1, least=0)
    top_k: int = number(200, least=0)
    max_new_tokens: int = number(100, least=1)


def evaluate(run: Run, options: MmluGeneratedOptions) -> Outcome:
    """Returns the accuracy over all questions, its 95 % interval, and the share of answers that are any choice."""
    by_subject = choose_subjects(read_mmlu(options.path, options.split), options.subjects, run.config.limit)
    questions = [question for of_subject in by_subject.values() for question in of_subject]
    subject = run.model
    prompt = ("base" if subject.adapter is None else "adapted") if options.prompt == "auto" else options.prompt
    sampling = Sampling(options.temperature, options.top_k)
    room = subject.base.config.context_length - options.max_new_tokens
    prompts, too_long = [], 0
    for i, question in enumerate(questions):
        ids = encoded(subject, PROMPTS[prompt].format(**question._asdict() | {"choices": list(question.choices)}))
        too_long += len(ids) > room
        prompts.append(Prompt(ids[-room:], options.max_new_tokens, sampling, (END,), i))
    texts = generate(subject, prompts, run.result_store("generated"), run.console, seed=run.config.seed)
    right = [is_right(text, question) for text, question in zip(texts, questions, strict=True)]
    chosen = [is_a_choice(text, question) for text, question in zip(texts, questions, strict=True)]
    of_subjects = {
        name: sum(r for r, question in zip(right, questions, strict=True) if question.subject == name) / len(of_subject)
        for name, of_subject in by_subject.items()
    }
    scores = {
        "prompt": prompt,
        "questions": len(questions),
        "accuracy": sum(right) / len(right),
        "accuracy_interval": wilson_interval(sum(right), len(right)),
        "mean_over_subjects": sum(of_subjects.values()) / len(of_subjects),
        "answers_that_are_a_choice": sum(chosen) / len(chosen),
        "prompts_cut_at_their_beginning": too_long,
        "subjects": of_subjects,
    }
    return Outcome(scores, table_of(scores))


def choose_subjects(
    by_subject: dict[str, list[MultipleChoice]], names: tuple[str, ...], limit: int | None
) -> dict[str, list[MultipleChoice]]:
    """Returns the questions of the named subjects.

    Args:
      by_subject: questions by subject.
      names: subjects to return; empty means all.
      limit: questions per subject at most; None means all.

    Raises:
      InputError: a subject is unknown.
    """
    for name in names:
        if name not in by_subject:
            raise InputError(f"config.evaluation.subjects has {name!r}; {did_you_mean(name, by_subject)}")
    return {name: questions[:limit] for name, questions in by_subject.items() if not names or name in names}


def is_right(text: str, question: MultipleChoice) -> bool:
    """Returns True if a continuation of the prompt is the right choice."""
    return answered(text) == _choice(question.choices[question.answer])


def is_a_choice(text: str, question: MultipleChoice) -> bool:
    """Returns True if a continuation of the prompt is any of the choices."""
    return answered(text) in map(_choice, question.choices)


def answered(text: str) -> str:
    """Returns the answer in a continuation of the prompt: the text before "###", stripped."""
    return _stripped(text.partition(END)[0])


def _choice(text: str) -> str:
    return _stripped(text.strip("[").strip("]"))


def _stripped(text: str) -> str:
    return text.strip().strip(".").strip("'").strip(".").strip("'")


def table_of(scores: dict) -> Table:
    """Returns a table with one row per score."""
    table = Table("MMLU, no examples, generated")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("accuracy", f"{scores['accuracy']:.4f}")
    table.add_row("its 95 % interval", "{:.4f} to {:.4f}".format(*scores["accuracy_interval"]))
    table.add_row("mean over subjects", f"{scores['mean_over_subjects']:.4f}")
    table.add_row("answers that are one of the choices", f"{scores['answers_that_are_a_choice']:.1%}")
    table.add_row("questions", f"{scores['questions']:,}")
    return table


MMLU_GENERATED = Evaluation(MmluGeneratedOptions, evaluate)
