"""What a step must compute and move, and how long a chip needs at least: from shapes alone, nothing is allocated.

Counted are products of matrices, two FLOPs a multiplication and addition. Norms, rotations, softmaxes, the optimizer's
update of a small adapter, biases and the scales of quantized weights are left out: together a few percent.

*Model* FLOPs are what the mathematics needs, each product once; MFU is measured in them. *Hardware* FLOPs add what is
computed again: by rematerialization, by a flash kernel's backward pass, and by accumulation. They do not add products
with zeros: those of a block-diagonal prefix, or the masked half of the scores where there is no flash kernel.

Costs are those of all rows given. For one device of several that split a batch, give that device's rows.
Letters: as in model/llama.py.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """One term of a step: FLOPs needed, FLOPs with what is computed again, and bytes read from or written to HBM."""

    name: str
    model_flops: float = 0.0
    hardware_flops: float = 0.0
    hbm_bytes: float = 0.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """A step as the sum of its parts; `str(cost)` is a table of them."""

    parts: tuple[Part, ...]

    @property
    def model_flops(self) -> float:
        """FLOPs that the mathematics needs."""
        return sum(part.model_flops for part in self.parts)

    @property
    def hardware_flops(self) -> float:
        """FLOPs that are executed, recomputation included."""
        return sum(part.hardware_flops for part in self.parts)

    @property
    def hbm_bytes(self) -> float:
        """Bytes read from and written to HBM."""
        return sum(part.hbm_bytes for part in self.parts)

    def __getitem__(self, name: str) -> Part:
        return {part.name: part for part in self.parts}[name]

    def __str__(self) -> str:
        total = Part("total", self.model_flops, self.hardware_flops, self.hbm_bytes)
        rows = [f"{p.name:18}{p.model_flops:14.4g}{p.hardware_flops:16.4g}{p.hbm_bytes:14.4g}" for p in self.parts]
        last = f"{total.name:18}{total.model_flops:14.4g}{total.hardware_flops:16.4g}{total.hbm_bytes:14.4g}"
        return "\n".join([f"{'':18}{'model FLOPs':>14}{'hardware FLOPs':>16}{'HBM bytes':>14}", *rows, last])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterCost:
    """Terms of a training step that depend on the method and its options.

    Attributes:
      start_layer: the first adapted layer. Layers below it have no backward pass.
      num_tokens: prefix tokens that every query of an adapted layer attends to. One is counted as the constant that it
        is in a softmax of its own.
      bind_weights: weights of each adapted layer that every prefix token is multiplied with before the step.
      trained_weights: trained weights of each adapted layer that every token of the text is multiplied with, as LoRA's
        factors.
    """

    start_layer: int = 0
    num_tokens: int = 0
    bind_weights: int = 0
    trained_weights: int = 0


def train_step(
    config: LlamaConfig,
    *,
    batch_size: int,
    sequence_length: int,
    adapter: AdapterCost,
    trains_base: bool = False,
    targets: float = 1.0,
    accumulate: int = 1,
    remat: Literal["full", "dots", "none"] = "full",
    weight_bytes: float = 2,
    head_bytes: float | None = None,
    activation_bytes: float = 2,
    chunk: int = 512,
) -> Cost:
    """One optimizer step of an adapter over a base.

    A product with N frozen weights costs 2 N FLOPs a token forward and 2 N backward, for the gradient of its input.
    Layers below the adapter's `start_layer` have no backward pass at all; that layer itself counts in full, since it is
    a step of the same loop as those above. N trained weights cost 2 N more, for their gradient. Every position of a row
    counts, padding too, since it is computed; a packed row counts as one document, whose t queries see t / 2 keys on
    average.

    Args:
      batch_size: rows a step, over all parts of the accumulation.
      sequence_length: tokens a row.
      adapter: what its method adds.
      trains_base: True if all weights of the base are trained, as float32 differences.
      targets: share of all positions whose next token is a target; the head is computed there only.
      accumulate: parts that the rows are taken in; weights are read for each.
      remat: as in `llama.forward`.
      weight_bytes: bytes a weight in HBM: float32 4, bfloat16 2, int8 1, int4 0.5.
      head_bytes: the same of embedding and head; None: as weight_bytes.
      activation_bytes: bytes an activation in HBM.
      chunk: positions whose logits exist at a time, as in `cross_entropy.token_losses`; the head is read for each.

    Raises:
      InputError: a number out of range.
    """
    _check(batch_size=batch_size, sequence_length=sequence_length, chunk=chunk)
    if not 0 <= adapter.start_layer < config.num_layers:
        raise InputError(f"start_layer is {adapter.start_layer}, but the model has layers 0 to {config.num_layers - 1}")
    if not 0 <= targets <= 1:
        raise InputError(f"targets is {targets}, but a share lies between 0 and 1")
    if accumulate < 1 or batch_size % accumulate:
        raise InputError(f"batch_size is {batch_size}, which accumulate, {accumulate}, does not divide")
    if remat not in ("full", "dots", "none"):
        raise InputError(f"remat {remat!r} is not one of full, dots, none")
    head_bytes = weight_bytes if head_bytes is None else head_bytes
    d, f, v, nh, kh = _sizes(config)
    forward, backward = config.num_layers, config.num_layers - adapter.start_layer
    tokens, runs_again = batch_size * sequence_length, 1 if remat == "full" else 0

    weights, moved = layer_weights(config), _moved(config)
    # Under "full" all of a layer is computed again but its last product, whose result no gradient needs.
    weights_again, moved_again = (weights - d * f, moved - (f + d)) if runs_again else (0, 0)
    weights_passed = weights * (forward + backward) + weights_again * backward
    layers = Part(
        "layers",
        model_flops=2 * tokens * weights * (forward + backward),
        hardware_flops=2 * tokens * weights_passed,
        hbm_bytes=tokens * activation_bytes * (moved * (forward + backward) + moved_again * backward),
    )

    # Positions that are targets come first, and chunks without any are skipped. Where the head is frozen, the forward
    # pass leaves the gradient of the hidden states beside the loss, so that nothing is computed again.
    target_tokens = targets * tokens
    chunks = accumulate * math.ceil(target_tokens / accumulate / chunk)
    head_flops = 4 * target_tokens * d * v
    # What the forward pass writes for the backward pass to read: a layer's input; the results of products with weights
    # and of attention that are needed, of which a logarithm a head is float32; or everything, of which four copies for
    # the norms are float32 and five are as wide as the MLP.
    saved = {
        "full": activation_bytes * d,
        "dots": activation_bytes * (2 * d + 2 * nh + 2 * kh + 2 * f) + 4 * config.num_heads,
        "none": activation_bytes * (2 * nh + 2 * kh + 5 * f) + 4 * 4 * d,
    }[remat]
    bound = 2 * adapter.num_tokens * adapter.bind_weights * backward
    trained = 2 * tokens * adapter.trained_weights * backward
    of_base = (config, tokens, target_tokens, accumulate, weights_passed, activation_bytes)
    return Cost(
        (
            layers,
            # Forward, backward, and for what is computed again.
            Part("layer weights", hbm_bytes=accumulate * weights_passed * weight_bytes),
            _attention(config, adapter, tokens, sequence_length, runs_again, activation_bytes),
            _prefix(config, adapter, tokens, runs_again, accumulate, activation_bytes),
            # Backward as much as forward, for the gradient of the tokens. Each part of the accumulation does it again.
            Part(
                "bind",
                2 * bound,
                2 * bound * accumulate,
                2 * adapter.bind_weights * backward * accumulate * weight_bytes,
            ),
            # Forward, and backward for the gradients of input and weights.
            Part("trained weights", 3 * trained, (3 + runs_again) * trained),
            # Hidden states are read and their gradients written.
            Part("head", head_flops, head_flops, hbm_bytes=2 * target_tokens * d * activation_bytes),
            # For the logits and for the gradient, by each chunk.
            Part("head weights", hbm_bytes=2 * chunks * d * v * head_bytes),
            # float32: written, read for the loss, read for the gradient.
            Part("logits", hbm_bytes=3 * 4 * target_tokens * v),
            Part("saved activations", hbm_bytes=2 * tokens * backward * saved),
            _embedding(config, tokens, head_bytes, activation_bytes),
            *([_trained_base(*of_base)] if trains_base else []),
        )
    )


def _attention(
    config: LlamaConfig,
    adapter: AdapterCost,
    tokens: int,
    sequence_length: int,
    runs_again: int,
    activation_bytes: float,
) -> Part:
    _, _, _, nh, kh = _sizes(config)
    forward, backward = config.num_layers, config.num_layers - adapter.start_layer
    # A product of t queries with the t / 2 keys they see on average: 2 · t · (t / 2) · n · h FLOPs a row. Forward there
    # are two, scores and values; backward four, for the gradients of weights, values, queries and keys. A flash kernel
    # keeps no scores, so its backward pass makes them again; and under "full" its forward pass runs again.
    product = tokens * sequence_length * nh
    # Scores stay on the chip. Forward q, k and v are read and o is written, with a prefix also the text's part of it;
    # backward those four and o's cotangent are read, and three cotangents written.
    forward_moved, backward_moved = (2 if adapter.num_tokens <= 1 else 3) * nh + 2 * kh, 4 * nh + 4 * kh
    moved = forward_moved * (forward + runs_again * backward) + backward_moved * backward
    return Part(
        "attention",
        model_flops=product * (2 * forward + 4 * backward),
        hardware_flops=product * (2 * forward + (5 + 2 * runs_again) * backward),
        hbm_bytes=tokens * activation_bytes * moved,
    )


def _prefix(
    config: LlamaConfig, adapter: AdapterCost, tokens: int, runs_again: int, accumulate: int, activation_bytes: float
) -> Part:
    _, _, _, nh, kh = _sizes(config)
    # Scores and values for p keys, twice that backward; fused with the attention above, so that only the prefix itself
    # is read, once a pass, and its cotangents are written.
    keys = adapter.num_tokens * (config.num_layers - adapter.start_layer) if adapter.num_tokens > 1 else 0
    product, size = 4 * tokens * keys * nh, 2 * keys * kh
    return Part(
        "prefix",
        model_flops=3 * product,
        hardware_flops=(3 + runs_again) * product,
        hbm_bytes=accumulate * activation_bytes * size * (3 + runs_again),
    )


def _trained_base(
    config: LlamaConfig,
    tokens: int,
    target_tokens: float,
    accumulate: int,
    weights_passed: int,
    activation_bytes: float,
) -> Part:
    """Terms of a base that is trained, beyond those of a frozen one: gradients of weights, and their update."""
    d, _, v, _, _ = _sizes(config)
    layers = layer_weights(config) * config.num_layers
    parameters = layers + d * v * (1 if config.tied_embeddings else 2)
    flops = 2 * (tokens * layers + target_tokens * d * v)
    moved = [
        # Differences to the base, float32, each time that the weights are read.
        4 * accumulate * (weights_passed + d * v),
        # Gradients, float32: written, and for each further part of the accumulation read and written with the sum.
        4 * parameters * (1 + 3 * (accumulate - 1)),
        # AdamW reads gradient, difference and two moments, and writes the last three.
        4 * parameters * 7,
        # Each product's input and the cotangent of its result.
        tokens * activation_bytes * _moved(config) * config.num_layers,
    ]
    # The backward pass makes a trained head's logits again.
    return Part("trained base", flops, flops + 2 * target_tokens * d * v, sum(moved))


def decode_step(
    config: LlamaConfig,
    *,
    batch_size: int,
    length: int,
    num_tokens: int = 1,
    start_layer: int = 2,
    weight_bytes: float = 2,
    cache_bytes: float = 2,
    activation_bytes: float = 2,
) -> Cost:
    """One new token for each row of a batch, with a key-value cache; the adapter is bound before.

    Args:
      batch_size: rows.
      length: tokens of a row that are attended to, the new one included. Where the attention has no kernel that stops
        at the length, give the slots of the cache: all are read.
      num_tokens, start_layer, weight_bytes, activation_bytes: as in `train_step`; no tokens are the base alone.
      cache_bytes: bytes a number of the cache.

    Raises:
      InputError: a number out of range.
    """
    _check(batch_size=batch_size, length=length)
    d, _, v, nh, kh = _sizes(config)
    if num_tokens < 0 or not 0 <= start_layer <= config.num_layers:
        raise InputError(
            f"{num_tokens} prefix tokens from layer {start_layer} on cannot be had on {config.num_layers} layers"
        )
    layers, weights = config.num_layers, layer_weights(config)
    flops = {
        "layers": 2 * batch_size * weights * layers,
        "attention": 4 * batch_size * length * nh * layers,
        "prefix": 4 * batch_size * num_tokens * nh * (layers - start_layer) if num_tokens > 1 else 0,
        "head": 2 * batch_size * d * v,
    }
    moved = {
        "layers": batch_size * activation_bytes * _moved(config) * layers,
        # Once for the whole batch.
        "layer weights": weights * layers * weight_bytes,
        # The new query in and its result out.
        "attention": batch_size * activation_bytes * 2 * nh * layers,
        # Keys and values of every row: all are read, the new ones written.
        "cache": batch_size * cache_bytes * (length + 1) * 2 * kh * layers,
        "prefix": activation_bytes * num_tokens * 2 * kh * (layers - start_layer) if num_tokens > 1 else 0,
        "head": batch_size * activation_bytes * d,
        "head weights": d * v * weight_bytes,
        # float32, written and read by the choice of the token.
        "logits": 2 * 4 * batch_size * v,
    }
    parts = (Part(name, flops.get(name, 0), flops.get(name, 0), size) for name, size in moved.items())
    return Cost((*parts, _embedding(config, batch_size, weight_bytes, activation_bytes)))


def layer_weights(config: LlamaConfig) -> int:
    """Weights of one layer that are multiplied with: q, k, v, o, gate, up and down."""
    d, f, _, nh, kh = _sizes(config)
    return d * (2 * nh + 2 * kh) + 3 * d * f


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one JAX device can do at most: bfloat16 FLOPs a second, HBM bytes a second and bytes of HBM.

    Also the bytes a second that it can receive from others of its slice, over all its links together.
    """

    name: str
    flops_per_second: float
    hbm_bytes_per_second: float
    hbm_bytes: int
    network_bytes_per_second: float


# Published a chip, in TFLOP/s, GB/s and GiB, at https://docs.cloud.google.com/tpu/docs/ v4, v5e and v6e, and for v5p
# in the table at tpu7x. JAX's own table (jax/_src/tpu_info.py) agrees within 3 % but for v5p's bandwidth, 2460 GB/s.
# Links between chips are published in Gbit/s a chip: 2400, 1600, 4800, 3200, 9600.
# On v4 and v5p the two cores of a chip are one device; on tpu7x each core is one, with half of everything.
_V4 = Chip("v4", 275e12, 1200e9, 32 << 30, 300e9)
_V5E = Chip("v5e", 197e12, 819e9, 16 << 30, 200e9)
_V5P = Chip("v5p", 459e12, 2765e9, 95 << 30, 600e9)
_V6E = Chip("v6e", 918e12, 1638e9, 32 << 30, 400e9)
_TPU7X = Chip("tpu7x", 2307e12 / 2, 7380e9 / 2, (192 << 30) // 2, 1200e9 / 2)

CHIPS: dict[str, Chip] = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _TPU7X,
}
"""Known chips by `jax.Device.device_kind`."""


class Roofline(NamedTuple):
    """The least time that a step can take, and what sets it."""

    seconds: float
    limit: Literal["compute", "memory"]


def roofline_seconds(cost: Cost, chip: Chip) -> Roofline:
    """The least time of a step on one device, where computing and moving overlap fully and nothing else is waited for.

    Compute is that of hardware FLOPs at the bfloat16 rate, in which JAX multiplies float32 matrices too by default.
    """
    compute, memory = cost.hardware_flops / chip.flops_per_second, cost.hbm_bytes / chip.hbm_bytes_per_second
    return Roofline(compute, "compute") if compute >= memory else Roofline(memory, "memory")


def peak_flops(device_kinds: Iterable[str]) -> float | None:
    """What devices of these kinds, one each, do together at most: bfloat16 FLOPs a second; None if one is unknown."""
    chips = [CHIPS.get(kind) for kind in device_kinds]
    known = [chip.flops_per_second for chip in chips if chip is not None]
    return sum(known) if len(known) == len(chips) else None


def _sizes(config: LlamaConfig) -> tuple[int, int, int, int, int]:
    n, k, h = config.num_heads, config.num_kv_heads, config.head_dim
    return config.d_model, config.d_mlp, config.vocab_size, n * h, k * h


def _moved(config: LlamaConfig) -> int:
    """Activations a token and layer: each product with weights reads its input and writes its result."""
    d, f, _, nh, kh = _sizes(config)
    return 2 * (d + nh) + 2 * (d + kh) + 3 * (d + f)


def _embedding(config: LlamaConfig, tokens: int, weight_bytes: float, activation_bytes: float) -> Part:
    """A row of the table is read and written for each token: looked up, not multiplied."""
    return Part("embedding", hbm_bytes=tokens * config.d_model * (weight_bytes + activation_bytes))


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} is {number}, but should be 1 or more")
