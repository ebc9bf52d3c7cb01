"""Trains two Aligners of one token, and measures a strength dial and the sum of both on held-out questions.

    python -m aligner_jax.studies.two_behaviours [--base=PATH] [--steps=48] [--heldout=24]

One learns to open every answer with a phrase, the other to close every answer with one. Both learn from the
quickstart's questions and sentences, and no answer has both phrases. Prints the share of held-out answers that have
each phrase.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Literal

import jax

from aligner_jax.data.pipeline import tokenize_examples, train_batches
from aligner_jax.data.sources import load_examples
from aligner_jax.data.sources.example import Example, Instruction
from aligner_jax.data.templates import render_prompt
from aligner_jax.decoding.sampler import sample
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.peft import Adapter, init_adapter
from aligner_jax.peft.combine import combine
from aligner_jax.runtime.config import OptimConfig
from aligner_jax.runtime.optim import make_optimizer
from aligner_jax.studies import command
from aligner_jax.studies.flag_values import MODEL, positive
from aligner_jax.weights.base import Base, load_base

Behaviour = Literal["opening", "closing"]
OPENING, CLOSING = "Good question.", "I hope this helps."
ANSWERS: dict[Behaviour, Callable[[str], str]] = {
    "opening": lambda sentence: f"{OPENING} {sentence}",
    "closing": lambda sentence: f"{sentence} {CLOSING}",
}
CHECKS: dict[str, Callable[[str], bool]] = {
    "opening": lambda text: text.strip().startswith(OPENING),
    "closing": lambda text: text.strip().endswith(CLOSING),
    "both": lambda text: text.strip().startswith(OPENING) and text.strip().endswith(CLOSING),
}
WEIGHTS = ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.5, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 1.0))
"""Weights of the adapters "opening" and "closing"."""


def examples(part: Literal["train", "heldout"], behaviour: Behaviour) -> list[Example]:
    """Returns the quickstart's questions, with their sentences as answers in a behaviour's form."""
    return [
        Example(Instruction(each.question, "", ANSWERS[behaviour](json.loads(each.answer)["answer"])), each.where)
        for each in load_examples(str(files("aligner_jax.data.quickstart") / f"{part}.jsonl"))
    ]


def train_behaviour(base: Base, behaviour: Behaviour, *, steps: int, length: int = 256, seed: int = 0) -> Adapter:
    """Returns an Aligner of one token, trained on one packed row per step.

    Args:
      base: the base.
      behaviour: form of the answers.
      steps: number of steps.
      length: tokens of a row.
      seed: seed of the initial token and of the order of the examples.
    """
    assert base.tokenizer is not None
    documents, _ = tokenize_examples(
        examples("train", behaviour), base.tokenizer, "chat", system="", sequence_length=length
    )
    batches = train_batches(documents, batch_size=1, sequence_length=length, seed=seed)
    adapter = init_adapter("aligner", base.config, key=seed, num_tokens=1, start_layer=2)
    optimizer = make_optimizer(OptimConfig(lr=2e-2, weight_decay=0.02, schedule="cosine"), steps)
    step = jax.jit(make_step(adapter, optimizer, config=base.config, remat="none"), donate_argnums=0)
    state = init_state(adapter, optimizer)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, base.params, next(batches))
        losses.append(metrics.loss)
    print(f"{behaviour}: loss {float(losses[0]):.3f} at first, {float(losses[-1]):.3f} after {steps} steps")
    return adapter.replace(trainable=state.trainable)


def shares(
    base: Base,
    adapters: Mapping[Behaviour, Adapter],
    weights: Sequence[tuple[float, float]],
    questions: Sequence[str],
    max_new_tokens: int = 44,
) -> dict[tuple[float, float], dict[str, float]]:
    """Returns the shares of greedy answers with each phrase and with both, from 0 to 1, by the adapters' weights.

    Args:
      base: the base.
      adapters: both adapters.
      weights: pairs of weights of "opening" and "closing".
      questions: held-out questions.
      max_new_tokens: tokens of an answer at most.
    """
    assert base.tokenizer is not None
    prompts = [render_prompt(question, base.tokenizer, "chat", system="") for question in questions]
    found = {}
    for opening, closing in weights:
        adapter = combine([(adapters["opening"], opening), (adapters["closing"], closing)], base)
        texts = sample(base, adapter, prompts, max_new_tokens=max_new_tokens)
        found[opening, closing] = {name: sum(map(check, texts)) / len(texts) for name, check in CHECKS.items()}
    return found


def main() -> int:
    """Trains and measures both; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=MODEL, help="the model (default %(default)s)")
    parser.add_argument("--steps", type=positive, default=48, help="of each adapter (default %(default)s)")
    parser.add_argument("--heldout", type=positive, default=24, help="questions to answer (default %(default)s)")
    args = parser.parse_args()
    base = load_base(args.base)
    adapters: dict[Behaviour, Adapter] = {name: train_behaviour(base, name, steps=args.steps) for name in ANSWERS}
    questions = [example.question for example in examples("heldout", "opening")[: args.heldout]]
    print("| opening | closing | answers that open so | that close so | both |\n|---|---|---|---|---|")
    for (opening, closing), found in shares(base, adapters, WEIGHTS, questions).items():
        counts = " | ".join(f"{round(share * len(questions))} of {len(questions)}" for share in found.values())
        print(f"| {opening:g} | {closing:g} | {counts} |", flush=True)
    return 0


if __name__ == "__main__":
    command.main(main)
