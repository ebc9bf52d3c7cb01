"""Roofline model: FLOPs and HBM traffic of a step, and its least time on a chip. Uses shapes only; allocates nothing.

Only matrix products count, with two FLOPs per multiplication and addition. Norms, rotations, softmaxes, the optimizer's
update of a small adapter, biases and the scales of quantized weights are left out; together they are a few percent.

*Model* FLOPs are those of the mathematics, with every product once; MFU is measured in them. *Hardware* FLOPs include
recomputation: by rematerialization, by a flash kernel's backward pass, and by accumulation. Neither includes products
with zeros: those of a block-diagonal prefix, or the masked half of the scores without a flash kernel.

Costs cover all rows given. For one of several devices that split a batch, give the rows of that device.
Letters are those of model/llama.py.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.remat import Remat, check_name, parts
from aligner_jax.runtime.chips import Chip


@dataclasses.dataclass(frozen=True)
class Part:
    """One term of a step's cost.

    Attributes:
      model_flops: FLOPs of the mathematics.
      hardware_flops: FLOPs executed, recomputation included.
      hbm_bytes: bytes read from and written to HBM.
    """

    name: str
    model_flops: float = 0.0
    hardware_flops: float = 0.0
    hbm_bytes: float = 0.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a step, as the sum of its parts; `str(cost)` is a table of the parts."""

    parts: tuple[Part, ...]

    @property
    def model_flops(self) -> float:
        """FLOPs of the mathematics."""
        return sum(part.model_flops for part in self.parts)

    @property
    def hardware_flops(self) -> float:
        """FLOPs executed, recomputation included."""
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
      start_layer: first adapted layer. Layers below it have no backward pass.
      num_tokens: prefix tokens that every query of an adapted layer attends to. A single token adds no attention cost,
        since its separate softmax is constant.
      bind_weights: weights per adapted layer that every bound token is multiplied with, to bind the adapter.
      bound_tokens: tokens that are bound, where their sum is a constant like that of a single token; None if they are
        `num_tokens`.
      trained_weights: trained weights per adapted layer that every token of the text is multiplied with, such as LoRA's
        factors.
    """

    start_layer: int = 0
    num_tokens: int = 0
    bind_weights: int = 0
    bound_tokens: int | None = None
    trained_weights: int = 0

    @property
    def bind_products(self) -> int:
        """Multiplications per adapted layer that bind the adapter."""
        return (self.num_tokens if self.bound_tokens is None else self.bound_tokens) * self.bind_weights


def train_step(
    config: LlamaConfig,
    *,
    batch_size: int,
    sequence_length: int,
    adapter: AdapterCost,
    trains_base: bool = False,
    targets: float = 1.0,
    accumulate: int = 1,
    remat: Remat = "full",
    weight_bytes: float = 2,
    head_bytes: float | None = None,
    activation_bytes: float = 2,
    chunk: int = 512,
) -> Cost:
    """Returns the cost of one optimizer step that trains an adapter over a base.

    A product with N frozen weights costs 2 N FLOPs per token in the forward pass, and 2 N in the backward pass for the
    gradient of its input. N trained weights cost 2 N more, for their gradient. Layers below the adapter's `start_layer`
    have no backward pass. The start layer itself counts in full, since it runs in the same loop as the layers above.
    All positions of a row count, padding included. A packed row counts as one document, whose t queries see t / 2 keys
    on average.

    Args:
      batch_size: rows per step, over all parts of the accumulation.
      sequence_length: tokens per row.
      adapter: terms that the adapter's method adds.
      trains_base: True if all weights of the base are trained, as float32 differences.
      targets: share of positions whose next token is a target; only these are multiplied with the head.
      accumulate: accumulation steps; weights are read in every one.
      remat: rematerialization, see `remat.parts`.
      weight_bytes: bytes per weight in HBM: float32 4, bfloat16 2, int8 1, int4 0.5.
      head_bytes: bytes per weight of embedding and head; None takes `weight_bytes`.
      activation_bytes: bytes per activation in HBM.
      chunk: positions per chunk of logits, as in `cross_entropy.token_losses`; the head is read for every chunk.

    Raises:
      InputError: an argument is out of range.
    """
    _check(batch_size=batch_size, sequence_length=sequence_length, chunk=chunk)
    _check_step(config, batch_size, adapter, targets, accumulate, remat)
    head_bytes = weight_bytes if head_bytes is None else head_bytes
    d, _, v, _, _ = _sizes(config)
    backward = config.num_layers - adapter.start_layer
    tokens, policies = batch_size * sequence_length, _policies(config, adapter, remat)
    again = policies.count("full")
    layers, weights_passed = _layers(config, backward, tokens, again, activation_bytes)

    # Target positions come first, and chunks without any are skipped. If the head is frozen, the forward pass also
    # computes the gradient of the hidden states, so that nothing is recomputed.
    target_tokens = targets * tokens
    chunks = accumulate * math.ceil(target_tokens / accumulate / chunk)
    head_flops = 4 * target_tokens * d * v
    trained = 2 * tokens * adapter.trained_weights
    saved = sum(_saved_bytes(config, policy, activation_bytes) for policy in policies)
    of_base = (config, tokens, target_tokens, accumulate, weights_passed, activation_bytes)
    return Cost(
        (
            layers,
            # Read in the forward pass, the backward pass and the recomputation.
            Part("layer weights", hbm_bytes=accumulate * weights_passed * weight_bytes),
            _attention(config, adapter, tokens, sequence_length, again, activation_bytes),
            _prefix(config, adapter, tokens, again, accumulate, activation_bytes),
            _bind(adapter, backward, accumulate, weight_bytes),
            # One forward product, and two backward: the gradients of input and weights.
            Part("trained weights", 3 * trained * backward, trained * (3 * backward + again)),
            # Hidden states are read and their gradients written.
            Part("head", head_flops, head_flops, hbm_bytes=2 * target_tokens * d * activation_bytes),
            # Read twice by every chunk, for the logits and for the gradient.
            Part("head weights", hbm_bytes=2 * chunks * d * v * head_bytes),
            # Written once and read twice in float32, for the loss and for the gradient.
            Part("logits", hbm_bytes=3 * 4 * target_tokens * v),
            Part("saved activations", hbm_bytes=2 * tokens * saved),
            _embedding(config, tokens, head_bytes, activation_bytes),
            *([_trained_base(*of_base)] if trains_base else []),
        )
    )


def _check_step(
    config: LlamaConfig, batch_size: int, adapter: AdapterCost, targets: float, accumulate: int, remat: str
) -> None:
    if not 0 <= adapter.start_layer < config.num_layers:
        raise InputError(f"start_layer is {adapter.start_layer}, but the model has layers 0 to {config.num_layers - 1}")
    if not 0 <= targets <= 1:
        raise InputError(f"targets is {targets}, but a share lies between 0 and 1")
    if accumulate < 1 or batch_size % accumulate:
        raise InputError(f"batch_size is {batch_size}, which accumulate, {accumulate}, does not divide")
    check_name(remat)


def _policies(config: LlamaConfig, adapter: AdapterCost, remat: Remat) -> list[str]:
    """Returns the rematerialization of every layer that has a backward pass."""
    of_each = [policy for layers, policy in parts(remat, range(config.num_layers)) for _ in layers]
    return of_each[adapter.start_layer :]


def _layers(config: LlamaConfig, backward: int, tokens: int, again: int, activation_bytes: float) -> tuple[Part, int]:
    """Returns the products with weights of all layers, of which `again` run again; and the weights a token passes."""
    d, f, _, _, _ = _sizes(config)
    forward = config.num_layers
    weights, moved = layer_weights(config), _moved(config)
    # "full" recomputes all of a layer except its last product, whose result no gradient needs.
    weights_passed = weights * (forward + backward) + (weights - d * f) * again
    part = Part(
        "layers",
        model_flops=2 * tokens * weights * (forward + backward),
        hardware_flops=2 * tokens * weights_passed,
        hbm_bytes=tokens * activation_bytes * (moved * (forward + backward) + (moved - (f + d)) * again),
    )
    return part, weights_passed


def _bind(adapter: AdapterCost, backward: int, accumulate: int, weight_bytes: float) -> Part:
    # The backward pass, for the gradient of the tokens, costs as much as the forward pass. Both are repeated in every
    # accumulation step.
    flops = 4 * adapter.bind_products * backward
    return Part("bind", flops, flops * accumulate, 2 * adapter.bind_weights * backward * accumulate * weight_bytes)


def _saved_bytes(config: LlamaConfig, policy: str, activation_bytes: float) -> float:
    """Returns the bytes per token that the forward pass of a layer saves for the backward pass."""
    d, f, _, nh, kh = _sizes(config)
    # "full": the layer's input. "dots": also the needed results of products with weights and of attention, with one
    # float32 logarithm per head. "none": everything, with four float32 copies for the norms and five arrays as wide as
    # the MLP.
    return {
        "full": activation_bytes * d,
        "dots": activation_bytes * (2 * d + 2 * nh + 2 * kh + 2 * f) + 4 * config.num_heads,
        "none": activation_bytes * (2 * nh + 2 * kh + 5 * f) + 4 * 4 * d,
    }[policy]


def _attention(
    config: LlamaConfig,
    adapter: AdapterCost,
    tokens: int,
    sequence_length: int,
    again: int,
    activation_bytes: float,
) -> Part:
    _, _, _, nh, kh = _sizes(config)
    forward, backward = config.num_layers, config.num_layers - adapter.start_layer
    # A product of t queries with the t / 2 keys they see on average: 2 · t · (t / 2) · n · h FLOPs per row. The forward
    # pass has two: scores and values. The backward pass has four: gradients of weights, values, queries and keys. A
    # flash kernel does not save the scores, so its backward pass recomputes them. "full" also repeats the forward pass.
    product = tokens * sequence_length * nh
    # Scores never reach HBM. The forward pass reads q, k and v and writes o; with a prefix it also writes the text's
    # part of o. The backward pass reads these four and the cotangent of o, and writes three cotangents.
    forward_moved, backward_moved = (2 if adapter.num_tokens <= 1 else 3) * nh + 2 * kh, 4 * nh + 4 * kh
    moved = forward_moved * (forward + again) + backward_moved * backward
    return Part(
        "attention",
        model_flops=product * (2 * forward + 4 * backward),
        hardware_flops=product * (2 * forward + 5 * backward + 2 * again),
        hbm_bytes=tokens * activation_bytes * moved,
    )


def _prefix(
    config: LlamaConfig, adapter: AdapterCost, tokens: int, again: int, accumulate: int, activation_bytes: float
) -> Part:
    _, _, _, nh, kh = _sizes(config)
    # Scores and values for p keys; the backward pass has twice the FLOPs. The prefix is fused with the attention above,
    # so the only traffic is the prefix itself, read once per pass, and its cotangents.
    keys, backward = adapter.num_tokens if adapter.num_tokens > 1 else 0, config.num_layers - adapter.start_layer
    product, passes = 4 * tokens * keys * nh, 3 * backward + again
    return Part(
        "prefix",
        model_flops=3 * product * backward,
        hardware_flops=product * passes,
        hbm_bytes=accumulate * activation_bytes * 2 * keys * kh * passes,
    )


def _trained_base(
    config: LlamaConfig,
    tokens: int,
    target_tokens: float,
    accumulate: int,
    weights_passed: int,
    activation_bytes: float,
) -> Part:
    """Returns the additional cost of a trained base over a frozen one: gradients of the weights, and their update."""
    d, _, v, _, _ = _sizes(config)
    layers = layer_weights(config) * config.num_layers
    parameters = layers + d * v * (1 if config.tied_embeddings else 2)
    flops = 2 * (tokens * layers + target_tokens * d * v)
    moved = [
        # Differences to the base in float32, read whenever the weights are read.
        4 * accumulate * (weights_passed + d * v),
        # Gradients in float32: written once; every further accumulation step writes them, and reads and writes the sum.
        4 * parameters * (1 + 3 * (accumulate - 1)),
        # AdamW reads the gradient, the difference and two moments, and writes all but the gradient.
        4 * parameters * 7,
        # Inputs of products, and the cotangents of their results.
        tokens * activation_bytes * _moved(config) * config.num_layers,
    ]
    # The backward pass recomputes the logits of a trained head.
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
    """Returns the cost of one decode step with a key-value cache: one new token per row. The adapter is already bound.

    Args:
      batch_size: rows of the batch.
      length: tokens per row that are attended to, the new one included. Without an attention kernel that stops at the
        length, give the slots of the cache, since all are read.
      num_tokens, start_layer, weight_bytes, activation_bytes: see `train_step` and `AdapterCost`; 0 tokens stand for
        the base alone.
      cache_bytes: bytes per element of the cache.

    Raises:
      InputError: an argument is out of range.
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
        # Read once for the whole batch.
        "layer weights": weights * layers * weight_bytes,
        # Reads the new query and writes its result.
        "attention": batch_size * activation_bytes * 2 * nh * layers,
        # Reads all keys and values, and writes the new ones.
        "cache": batch_size * cache_bytes * (length + 1) * 2 * kh * layers,
        "prefix": activation_bytes * num_tokens * 2 * kh * (layers - start_layer) if num_tokens > 1 else 0,
        "head": batch_size * activation_bytes * d,
        "head weights": d * v * weight_bytes,
        # Written in float32, and read to choose the token.
        "logits": 2 * 4 * batch_size * v,
    }
    parts = (Part(name, flops.get(name, 0), flops.get(name, 0), size) for name, size in moved.items())
    return Cost((*parts, _embedding(config, batch_size, weight_bytes, activation_bytes)))


def layer_weights(config: LlamaConfig) -> int:
    """Returns the number of weights in one layer's products: q, k, v, o, gate, up and down."""
    d, f, _, nh, kh = _sizes(config)
    return d * (2 * nh + 2 * kh) + 3 * d * f


class Roofline(NamedTuple):
    """Least time of a step in seconds, and the resource that limits it."""

    seconds: float
    limit: Literal["compute", "memory"]


def roofline_seconds(cost: Cost, chip: Chip) -> Roofline:
    """Returns the least time of a step on one device, if compute and HBM traffic overlap fully and nothing else waits.

    Compute time is that of the hardware FLOPs at the bfloat16 rate, since JAX multiplies float32 matrices at that rate
    too by default.
    """
    compute, memory = cost.hardware_flops / chip.flops_per_second, cost.hbm_bytes / chip.hbm_bytes_per_second
    return Roofline(compute, "compute") if compute >= memory else Roofline(memory, "memory")


def _sizes(config: LlamaConfig) -> tuple[int, int, int, int, int]:
    n, k, h = config.num_heads, config.num_kv_heads, config.head_dim
    return config.d_model, config.d_mlp, config.vocab_size, n * h, k * h


def _moved(config: LlamaConfig) -> int:
    """Returns the activations per token and layer that products with weights read and write."""
    d, f, _, nh, kh = _sizes(config)
    return 2 * (d + nh) + 2 * (d + kh) + 3 * (d + f)


def _embedding(config: LlamaConfig, tokens: int, weight_bytes: float, activation_bytes: float) -> Part:
    """Returns the cost of the embedding: one table row per token is read and written, without a product."""
    return Part("embedding", hbm_bytes=tokens * config.d_model * (weight_bytes + activation_bytes))


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} is {number}, but should be 1 or more")
