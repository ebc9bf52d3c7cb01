"""Prompts on which a base is analysed with and without its adapters."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.sources import Example, Instruction
from aligner_jax.data.templates import render_example_prompt
from aligner_jax.data.tokenizer import Tokenizer

QUESTIONS = (
    "Why does the moon change its shape?",
    "Write a short poem about a river in winter.",
    "How many minutes are there in two and a half hours?",
    "What is the difference between weather and climate?",
    "Suggest three dinners that take less than half an hour.",
    "Explain to a child what electricity is.",
    "Who was Marie Curie?",
    "Translate into French: I would like a cup of tea, please.",
    "What should I pack for a week in the mountains?",
    "A train travels 180 kilometres in two hours. What is its average speed?",
    "Give me two arguments for and two against working from home.",
    "What does a prime minister do?",
    "Rewrite this sentence politely: Send me the report today.",
    "Which animals sleep through the winter, and why?",
    "Write a function in Python that reverses a list.",
    "What is the capital of Australia?",
    "How do I remove a coffee stain from a shirt?",
    "Summarize the story of the tortoise and the hare.",
    "If a shirt costs 40 euros and is reduced by a quarter, what does it cost?",
    "Name a famous painting and say what is in it.",
    "How does a vaccine work?",
    "Invent a name for a bakery that is open at night.",
    "What causes the tides?",
    "Describe the taste of a lemon to somebody who has never had one.",
    "How can I fall asleep more easily?",
    "What were the main causes of the First World War?",
    "Is a tomato a fruit or a vegetable?",
    "Write an email that asks for a day off.",
    "What is the next number: 2, 4, 8, 16?",
    "How is paper made?",
    "Tell me a joke about computers.",
    "What is inflation?",
)
"""Requests of many kinds, written for this project and used if no data are given."""

_MULTIPLE = 32


class Texts(NamedTuple):
    """Prompts as token ids, padded at their ends to one length."""

    questions: list[str]
    tokens_bt: Int32[np.ndarray, "b t"]
    lengths_b: Int32[np.ndarray, " b"]


def default_examples() -> list[Example]:
    """Returns `QUESTIONS` as examples without answers."""
    return [Example(Instruction(question, "", ""), "the prompt") for question in QUESTIONS]


def tokenize_prompts(
    examples: Sequence[Example], tokenizer: Tokenizer, prompt_format: PromptFormat, *, longest: int
) -> Texts:
    """Tokenizes the text before an example's (last) answer, as in training and generation.

    Args:
      examples: examples whose prompts are used.
      tokenizer: tokenizer of the base.
      prompt_format: template and system prompt.
      longest: maximum tokens of a prompt; longer prompts keep their end, which the answer follows.

    Raises:
      InputError: an example does not fit the template.
    """
    template, system = prompt_format.template, prompt_format.system
    prompts = [render_example_prompt(example, tokenizer, template, system) for example in examples]
    ids = [tokenizer.encode(prompt, bos=tokenizer.add_bos)[-longest:] for prompt in prompts]
    # Rounded up, so that there are few lengths and compiled programs are reused.
    length = -(-max(map(len, ids)) // _MULTIPLE) * _MULTIPLE
    tokens_bt = np.stack([np.pad(np.asarray(one, np.int32), (0, length - len(one))) for one in ids])
    return Texts([e.question for e in examples], tokens_bt, np.asarray([len(one) for one in ids], np.int32))
