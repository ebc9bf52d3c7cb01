"""Every evaluation by the name that a config gives it."""

from aligner_jax.errors import InputError
from aligner_jax.evals.evaluation import Evaluation
from aligner_jax.evals.gsm8k import GSM8K
from aligner_jax.evals.harness import HARNESS
from aligner_jax.evals.mmlu_generated import MMLU_GENERATED
from aligner_jax.evals.vicuna import VICUNA
from aligner_jax.runtime.fields import did_you_mean

EVALUATIONS: dict[str, Evaluation] = {
    "gsm8k": GSM8K,
    "harness": HARNESS,
    "mmlu_generated": MMLU_GENERATED,
    "vicuna": VICUNA,
}


def find_evaluation(name: str) -> Evaluation:
    """The evaluation of that name. Raises InputError where there is none."""
    if name not in EVALUATIONS:
        raise InputError(
            f"config.evaluation.name is {name!r}, which is no evaluation; {did_you_mean(name, EVALUATIONS)}"
        )
    return EVALUATIONS[name]
