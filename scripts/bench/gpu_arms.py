"""Arms of scripts.bench.gpu: shapes, what each side runs, and the ratios with their targets.

Packed text stands for Alpaca's: lengths of documents are lognormal with a median of 110 tokens and a sigma of 0.55 (a
mean of 128), cut to 32..512, as the examples in the Alpaca template are with LLaMA's tokenizer.
"""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

PARTS = ("attention", "training", "packed", "kernels", "llama3", "decoding", "quantized")
MODELS: dict[str, dict[str, Any]] = {
    "7b": {"name": "llama2_7b"},
    "8b": {"name": "llama3_8b"},
    "tiny": {"vocab_size": 64, "d_model": 32, "d_mlp": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
             "head_dim": 8, "context_length": 256},
}  # fmt: skip
"""Arguments of the models: a name of `llama_config`, or all sizes."""
MEDIAN, SIGMA, SHORTEST, LONGEST = 110, 0.55, 32, 512
ALIGNER = ("aligner", {"num_tokens": 1, "start_layer": 2})
ALIGNER_10 = ("aligner", {"num_tokens": 10, "start_layer": 2})
LORA = ("lora", {"rank": 8, "alpha": 16, "targets": ("q", "v"), "dropout": 0.0})
LORA_ALL = ("lora", {"rank": 16, "alpha": 32, "targets": ("q", "k", "v", "o", "gate", "up", "down"), "dropout": 0.0})
PEFT_LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One measurement, which has a process of its own.

    Attributes:
      name: name of the row.
      part: one of `PARTS`.
      side: "ours" or "peer".
      command: command of the side's worker.
      arguments: arguments of the command.
    """

    name: str
    part: str
    side: str
    command: str
    arguments: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Target:
    """A ratio of the table, ours over the best of the peer's arms, or a figure of ours alone.

    Attributes:
      ours: name of our arm.
      peers: names of the peer's arms; none if the figure itself has a target.
      figure: name of the figure in both results.
      wanted: least ratio (or figure); the largest, if `lower`.
      lower: True for figures that should be small.
    """

    ours: str
    peers: tuple[str, ...]
    figure: str
    wanted: float
    lower: bool = False

    def ratio(self, results: dict[str, dict[str, Any]]) -> float | None:
        """Returns the ratio, or ours alone if there are no peers; None if it was not measured."""
        found = [results[name][self.figure] for name in self.peers if self.figure in results.get(name, {})]
        if self.figure not in results.get(self.ours, {}) or bool(self.peers) != bool(found):
            return None
        best: Callable[..., float] = min if self.lower else max
        return results[self.ours][self.figure] / (best(found) if found else 1)

    def met(self, ratio: float) -> bool:
        """Returns True if the ratio meets the target."""
        return (operator.le if self.lower else operator.ge)(ratio, self.wanted)


def arms(implementations: tuple[str, ...], *, smoke: bool = False) -> list[Arm]:
    """Returns all arms in the order in which they run.

    Args:
      implementations: attention implementations to time, besides "auto".
      smoke: True for tiny shapes, which run on a CPU in seconds.
    """
    tiny = {"model": "tiny"} if smoke else {}
    found = [Arm("attention", "attention", "ours", "check_attention", {"length": 32 if smoke else 512})]
    found += _training("training", "8 x 512", {"model": "7b", "rows": 8, "length": 512, "remat": "dots"})
    long = {"model": "7b", "rows": 8, "length": 2048, "remat": "full"}
    found += _training("training", "8 x 2048", long)
    packed = {"model": "7b", "rows": 8, "length": 512, "remat": "dots", "packed": True}
    found += _training("packed", "packed", packed, methods={"aligner_1": ALIGNER})
    for name in implementations:
        for label, shape in (("8 x 2048", long), ("packed", packed)):
            options = {**shape, "implementation": name, "method": ALIGNER[0], "options": ALIGNER[1]}
            found.append(Arm(f"{label} aligner_1, attention {name}", "kernels", "ours", "train", options))
    llama3 = {"model": "8b", "rows": 2, "length": 4096, "remat": "full"}
    found += _training(
        "llama3", "2 x 4096", llama3, methods={"aligner_1": ALIGNER, "lora_16_all": LORA_ALL}, peer=False
    )
    for rows in (8,) if smoke else (1, 8, 64):
        options = {"model": "7b", "rows": rows, "prompt": 64, "new_tokens": 128}
        found.append(Arm(f"decode {rows}", "decoding", "ours", "decode", options))
        found.append(Arm(f"transformers decode {rows}", "decoding", "peer", "decode", options))
    for kind, bits in (("int8", 8), ("int4", 4)):
        options = {"model": "7b", "rows": 8, "length": 512, "remat": "dots"}
        ours = {"quantization": kind, "method": ALIGNER[0], "options": ALIGNER[1]}
        found.append(Arm(f"{kind} aligner_1", "quantized", "ours", "train", options | ours))
        found.append(Arm(f"{kind} decode 8", "quantized", "ours", "decode", {
            "model": "7b", "rows": 8, "prompt": 64, "new_tokens": 128, "quantization": kind,
        }))  # fmt: skip
        peer = {"bits": bits, "lora": PEFT_LORA, "attention": "sdpa", "checkpointing": False}
        found.append(Arm(f"bitsandbytes {kind} peft_lora_8", "quantized", "peer", "train", options | peer))
    if smoke:
        small = {"rows": 2, "length": 32, "prompt": 8, "new_tokens": 24}
        found = [
            dataclasses.replace(arm, arguments={
                name: tiny.get(name, small.get(name, value)) for name, value in arm.arguments.items()
            })
            for arm in found
        ]  # fmt: skip
    return found


def _training(
    part: str,
    label: str,
    shape: dict[str, Any],
    *,
    methods: dict[str, tuple[str, dict]] | None = None,
    peer: bool = True,
) -> list[Arm]:
    methods = methods or {"aligner_1": ALIGNER, "aligner_10": ALIGNER_10, "lora_8": LORA}
    found = [
        Arm(f"{label} {name}", part, "ours", "train", {**shape, "method": method, "options": options})
        for name, (method, options) in methods.items()
    ]
    if peer:
        checkpointing = shape["remat"] == "full"
        # Eager attention stores all scores, which only short rows afford.
        for attention in ("eager", "sdpa") if part == "training" and not checkpointing else ("sdpa",):
            options = {**shape, "lora": PEFT_LORA, "attention": attention, "checkpointing": checkpointing}
            found.append(Arm(f"{label} peft_lora_8, {attention}", part, "peer", "train", options))
            if part == "packed":
                grouped = options | {"by_length": True}
                found.append(Arm(f"{label} peft_lora_8, {attention}, by length", part, "peer", "train", grouped))
    return found


TARGETS = (
    Target("8 x 512 aligner_1", ("8 x 512 peft_lora_8, eager", "8 x 512 peft_lora_8, sdpa"), "tokens_per_second", 1.35),
    Target(
        "8 x 512 aligner_1", ("8 x 512 peft_lora_8, eager", "8 x 512 peft_lora_8, sdpa"), "peak_bytes", 0.75, lower=True
    ),
    Target(
        "8 x 2048 aligner_1", ("8 x 2048 peft_lora_8, sdpa",), "tokens_per_second", 1.55
    ),
    Target(
        "8 x 2048 aligner_1", ("8 x 2048 peft_lora_8, sdpa",), "peak_bytes", 0.75,
        lower=True,
    ),
    Target(
        "packed aligner_1", ("packed peft_lora_8, sdpa", "packed peft_lora_8, sdpa, by length"),
        "tokens_per_second", 2.0,
    ),
    Target("2 x 4096 lora_16_all", (), "tokens_per_second", 12_500),
    Target("2 x 4096 aligner_1", (), "tokens_per_second", 14_000),
    Target("decode 8", ("transformers decode 8",), "tokens_per_second", 2.0),
)  # fmt: skip


def documents(count: int, *, longest: int = LONGEST, seed: int = 0) -> list[int]:
    """Returns lengths of documents."""
    lengths = np.random.default_rng(seed).lognormal(np.log(MEDIAN), SIGMA, count)
    return np.clip(lengths, min(SHORTEST, longest), longest).astype(int).tolist()


def packed_rows(rows: int, length: int) -> list[list[int]]:
    """Returns the lengths of the documents of each row, by first fit."""
    found: list[list[int]] = [[] for _ in range(rows)]
    misses = 0
    for size in documents(64 * rows, longest=length):
        row = next((row for row in found if sum(row) + size <= length), None)
        if row is not None:
            row.append(size)
        misses += row is None
        # The stream of real data would start new rows by now.
        if misses == 2 * rows:
            break
    return found
