"""Writes tests/goldens/dpo.npz: TRL's preference losses and gradients, on plain numbers and on a tiny model.

    python3.11 -m venv ENV
    ENV/bin/pip install trl torch transformers safetensors numpy tokenizers sentencepiece gguf regex
    ENV/bin/python tests/goldens/make/golden_dpo.py

The committed file comes from trl 1.16.0, torch 2.13.0 and numpy 2.4.6, and a second run writes the same bytes. Nothing
here imports aligner_jax.

The losses are those of `DPOTrainer._compute_loss`, in float64. Its models only return log-probabilities. For the plain
numbers these are given; for the model they come from make_goldens' `Oracle`, with one Aligner as the policy and another
as the reference over the same base. TRL's loss "sigmoid" no longer has label smoothing. "aot_unpaired" has it and is
the same loss for a single pair, because it differs only by sorting within the batch. So every loss is computed one pair
at a time, and losses that do not sort are checked against the whole batch.

Contents:

- `policy_m2`, `reference_m2`, `counts_m2`, and for each case `<case>/losses_m` and `<case>/slopes_m2` (derivatives with
  respect to the policy's log-probabilities).
- `model/tokens_<i>` and `model/prompt_<i>`: document i is the chosen or rejected one of pair i // 2; then the tokens of
  its prompt.
- `model/policy_<leaf>`, `model/reference_<leaf>`, and for each case `model/<case>/loss`, `model/<case>/grad_<leaf>`
  (means over the pairs) and TRL's metrics `model/rewards/…`.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from make_goldens import GOLDENS, Oracle
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

CASES = {
    "dpo": ("sigmoid", 0.1, 0.0),
    "dpo_steep": ("sigmoid", 0.7, 0.0),
    "dpo_smoothed": ("aot_unpaired", 0.1, 0.2),
    "ipo": ("ipo", 0.1, 0.0),
    "ipo_steep": ("ipo", 0.7, 0.0),
}
"""TRL's loss type, beta and label smoothing, by name."""
START_LAYER = 1


class Model(torch.nn.Module):
    """A model as the trainer calls it: log-probabilities of the labels, and metrics that it only logs."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs_of):
        super().__init__()
        self.log_probs_of = log_probs_of

    def forward(self, input_ids, labels, **_):
        targets = labels[:, 1:]
        log_probs = torch.where(targets >= 0, self.log_probs_of(input_ids, targets.clamp(min=0)), 0.0)
        nothing = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def trl_loss(case: str, policy: Model, reference: Model, inputs: dict) -> tuple[torch.Tensor, dict]:
    """Returns the trainer's loss of one batch, and the metrics that it logs."""
    kind, beta, smoothing = CASES[case]
    accelerator = SimpleNamespace(
        device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda model: model
    )
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        model=policy, ref_model=reference, accelerator=accelerator, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=False, args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0], beta=beta, label_smoothing=smoothing,
        use_weighting=False, _metrics=metrics, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    loss = DPOTrainer._compute_loss(trainer, policy, inputs, return_outputs=False)
    return loss, {name: values[0] for name, values in metrics["train"].items() if name.startswith("rewards/")}


def collate(pairs: list[dict]) -> dict:
    return DataCollatorForPreference(pad_token_id=0)(pairs)


def plain_numbers() -> dict[str, np.ndarray]:
    """Returns losses and slopes for given token log-probabilities of pairs from clearly right to clearly wrong."""
    rng = np.random.default_rng(11)
    sizes = rng.integers(1, 9, (8, 2))
    given = [[-rng.exponential(2.0, size) for size in pair] for pair in sizes]
    references = [[tokens + 1.5 * rng.standard_normal(len(tokens)) for tokens in pair] for pair in given]

    def sums(all_pairs):
        return np.array([[tokens.sum() for tokens in pair] for pair in all_pairs])

    result = {"policy_m2": sums(given), "reference_m2": sums(references), "counts_m2": sizes}
    for case in CASES:
        losses, slopes = [], []
        for policy, reference in zip(given, references, strict=True):
            inputs = collate([{
                "prompt_ids": [1], "chosen_ids": [1] * len(policy[0]), "rejected_ids": [1] * len(policy[1]),
            }])  # fmt: skip

            def table(pair, length=inputs["input_ids"].shape[1] - 1):
                rows = [np.pad(tokens, (0, length - len(tokens))) for tokens in pair]
                return torch.tensor(np.stack(rows), requires_grad=True)

            leaf, fixed = table(policy), table(reference)
            loss, _ = trl_loss(case, Model(lambda *_, x=leaf: x), Model(lambda *_, x=fixed: x), inputs)
            losses.append(loss.item())
            # The slope of every token of an answer is that of their sum.
            slopes.append(torch.autograd.grad(loss, leaf)[0][:, 0].numpy())
        result |= {f"{case}/losses_m": np.array(losses), f"{case}/slopes_m2": np.stack(slopes)}
    return result


def tiny_model() -> dict[str, np.ndarray]:
    oracle = Oracle(GOLDENS / "models" / "llama3")
    rng = np.random.default_rng(12)
    vocabulary, width = oracle.w["model.embed_tokens.weight"].shape
    adapted = oracle.layers - START_LAYER

    def leaves():
        return {"tokens": rng.standard_normal((3, width)), "gates": 0.5 * rng.standard_normal((adapted, oracle.n))}

    def log_probs_with(tensors):
        def log_probs_of(ids, targets):
            log_probs = oracle.logits(ids, tensors, START_LAYER)[:, :-1].log_softmax(-1)
            return log_probs.gather(-1, targets[..., None])[..., 0]

        return log_probs_of

    policy, reference = leaves(), leaves()
    result: dict[str, Any] = {f"model/policy_{name}": leaf for name, leaf in policy.items()}
    result |= {f"model/reference_{name}": leaf for name, leaf in reference.items()}
    pairs = []
    for number in range(4):
        prompt, chosen, rejected = (rng.integers(0, vocabulary, rng.integers(2, 9)).tolist() for _ in range(3))
        pairs.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
        for side, answer in enumerate((chosen, rejected)):
            result[f"model/tokens_{2 * number + side}"] = np.array(prompt + answer)
            result[f"model/prompt_{2 * number + side}"] = np.int64(len(prompt))
    frozen = Model(log_probs_with({name: torch.tensor(leaf) for name, leaf in reference.items()}))

    def loss_and_gradient(case, some_pairs):
        tensors = {name: torch.tensor(leaf, requires_grad=True) for name, leaf in policy.items()}
        loss, metrics = trl_loss(case, Model(log_probs_with(tensors)), frozen, collate(some_pairs))
        gradient = torch.autograd.grad(loss, list(tensors.values()))
        return np.array([loss.item()]), *(leaf.numpy() for leaf in gradient), metrics

    for case, (kind, _, _) in CASES.items():
        each = [loss_and_gradient(case, [pair]) for pair in pairs]
        *means, metrics = [np.mean([found[i] for found in each], 0) for i in range(3)] + [each[0][3]]
        *whole, metrics = loss_and_gradient(case, pairs)
        gap = max(np.abs(a - b).max() for a, b in zip(means, whole, strict=True))
        print(f"{case}: loss {means[0][0]:.4f}, a pair at a time − the batch {gap:.1e}")
        assert gap < 1e-12 or kind == "aot_unpaired", f"{case}: a batch is not the mean of its pairs"
        result[f"model/{case}/loss"] = means[0][0]
        result |= {f"model/{case}/grad_{name}": leaf for name, leaf in zip(policy, means[1:], strict=True)}
        if case == "dpo":
            result |= {f"model/{name}": np.float64(value) for name, value in metrics.items()}
    return result


def main() -> None:
    torch.set_num_threads(1)
    np.savez(GOLDENS / "dpo.npz", **plain_numbers(), **tiny_model())
    print(f"{GOLDENS / 'dpo.npz'}: {(GOLDENS / 'dpo.npz').stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
