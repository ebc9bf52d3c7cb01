"""The worker of this package on a GPU, or on a CPU for a smoke test; part of scripts.bench.gpu."""

import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aligner_jax.decoding import programs
from aligner_jax.decoding.arrivals import Arrivals
from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.engine_options import TOKENS_PER_CALL, EngineOptions, tokens_per_program
from aligner_jax.decoding.lengths import padded_slots, prompts_at_once, slots_of
from aligner_jax.decoding.request import Request
from aligner_jax.decoding.sampler import continue_ids
from aligner_jax.model import attention
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.model.llama import Params, abstract_params
from aligner_jax.model.quantized import Quantization
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.step import init_state, make_step
from aligner_jax.peft import init_adapter
from aligner_jax.runtime import chips, optim, platform, roofline
from aligner_jax.runtime.config import OptimConfig
from aligner_jax.runtime.memory import bits
from scripts.bench import gpu_attention, protocol
from scripts.bench.gpu_arms import MODELS, packed_rows

STEPS, WARM_UP, TURNS = 4, 2, 3


def about() -> dict[str, Any]:
    """Returns the device's name, its platform, and JAX's version."""
    device = jax.devices()[0]
    return {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}


def model_config(model: str) -> LlamaConfig:
    """Returns the config of one of `MODELS`."""
    sizes = MODELS[model]
    return llama_config(sizes["name"]) if "name" in sizes else LlamaConfig(**sizes)


def quantization_of(kind: str | None) -> Quantization | None:
    """Returns the quantization of a kind, such as "int8"; None for float weights."""
    return None if kind is None else Quantization(kind)  # pyright: ignore[reportArgumentType]


def random_params(config: LlamaConfig, dtype: str, quantization: Quantization | None) -> Params:
    """Returns random parameters; float ones are small, so that activations stay finite."""

    @functools.partial(jax.jit, static_argnames=("shape", "dtype"))
    def draw(key, shape, dtype):
        if jnp.issubdtype(dtype, jnp.integer):
            return jax.random.randint(key, shape, -7, 8, jnp.int8).astype(dtype)
        return jax.random.normal(key, shape, dtype) * jnp.asarray(0.02, dtype)

    leaves, tree = jax.tree.flatten(abstract_params(config, dtype, quantization))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(tree, [draw(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)])


def use_attention(name: str) -> None:
    """Makes "auto" take one implementation on GPUs, or XLA's."""
    names = () if name == "xla" else (name,)
    attention.KERNELS["cuda"] = attention.Order(unpacked=names, packed=names)


def batch_of(config: LlamaConfig, rows: int, length: int, packed: bool) -> Batch:
    """Returns a batch of random tokens: rows of one document, or packed ones; every position is a target."""
    sizes = packed_rows(rows, length) if packed else [[length]] * rows
    shape = (rows, length)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, documents in enumerate(sizes):
        ends = np.cumsum(documents)
        for number, (size, end) in enumerate(zip(documents, ends, strict=True), 1):
            segments[row, end - size : end], positions[row, end - size : end] = number, np.arange(size)
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, shape, dtype=np.int32)
    return Batch(
        tokens_bt=tokens, segment_ids_bt=segments, positions_bt=positions, loss_mask_bt=segments > 0, packed=packed
    )  # fmt: skip


def train(
    model: str,
    rows: int,
    length: int,
    remat: Any,
    method: str,
    options: dict[str, Any],
    *,
    packed: bool = False,
    quantization: str | None = None,
    implementation: str | None = None,
    only_compile: bool = False,
) -> dict[str, Any]:
    """Times a training step. Tokens count without padding; the peak is that of the device since the start.

    Args:
      model: one of `MODELS`.
      rows, length: shape of the batch.
      remat: see `model.remat`.
      method, options: see `peft.init_adapter`; `start_layer` is at most the last layer.
      packed: True for rows of several documents.
      quantization: kind of quantization; None for float weights.
      implementation: the only attention implementation of GPUs; None for the package's choice.
      only_compile: True to compile the step into the cache of programs, and not to run it.
    """
    if implementation is not None:
        use_attention(implementation)
    config, dtype = model_config(model), platform.compute_dtype("auto")
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    if "start_layer" in options:
        options["start_layer"] = min(options["start_layer"], config.num_layers - 1)
    adapter = init_adapter(method, config, key=0, **options)
    optimizer = optim.make_optimizer(OptimConfig(), steps=1000)
    state, batch = init_state(adapter, optimizer), batch_of(config, rows, length, packed)
    shapes = abstract_params(config, dtype, quantization_of(quantization))
    step = jax.jit(make_step(adapter, optimizer, config=config, remat=remat), donate_argnums=0)
    began = time.perf_counter()
    compiled = step.lower(state, shapes, batch).compile()
    result: dict[str, Any] = {"compile_seconds": time.perf_counter() - began}
    if only_compile:
        return result
    params, batch = random_params(config, dtype, quantization_of(quantization)), jax.device_put(batch)
    tokens, seconds, losses = int(np.count_nonzero(batch.segment_ids_bt)), [], []
    for turn in range(TURNS + 1):
        began = time.perf_counter()
        for _ in range(STEPS if turn else WARM_UP):
            state, metrics = compiled(state, params, batch)
            losses.append(metrics.loss)
        jax.block_until_ready((state, losses))
        seconds.append((time.perf_counter() - began) / STEPS)
    if not np.isfinite(losses).all():
        raise ValueError(f"the losses are {[float(loss) for loss in losses]}")
    return result | {
        "tokens_per_second": tokens / statistics.median(seconds[1:]),
        "fill": tokens / (rows * length),
        "parameters": adapter.num_params,
        **peak_bytes(),
    }


def decode(
    model: str,
    rows: int,
    prompt: int,
    new_tokens: int,
    *,
    quantization: str | None = None,
    only_compile: bool = False,
) -> dict[str, Any]:
    """Times greedy decoding after a prefill.

    `bandwidth_share` is the least traffic of a decode step, which reads the weights as they are held and the whole
    cache, over the time of a step and the bandwidth of the card.
    """
    config, dtype = model_config(model), platform.compute_dtype("auto")
    if only_compile:
        compile_decoding(config, dtype, rows, prompt, new_tokens, quantization_of(quantization))
        return {}
    params = random_params(config, dtype, quantization_of(quantization))
    prompts = np.random.default_rng(0).integers(3, config.vocab_size, (rows, prompt)).tolist()
    whole, steps = [], []
    for _ in range(TURNS + 1):
        began, times = time.perf_counter(), []
        for _ in continue_ids(
            params, None, prompts, config=config, max_new_tokens=new_tokens, sampling=Sampling()
        ):  # fmt: skip
            times.append(time.perf_counter())
        whole.append(times[-1] - began)
        steps.append(seconds_per_step(times, TOKENS_PER_CALL))
    result = {"tokens_per_second": rows * new_tokens / statistics.median(whole[1:]), **peak_bytes()}
    chip = chips.CHIPS.get(jax.devices()[0].device_kind)
    if chip is not None:
        held = sum(bits(x.dtype) * x.size for x in jax.tree.leaves(params)) / 8
        count = sum(x.size for x in jax.tree.leaves(params))
        # A step reads all slots of the cache.
        slots = slots_of(prompt, new_tokens, config.context_length)
        cost = roofline.decode_step(config, batch_size=rows, length=slots, num_tokens=0, weight_bytes=held / count)
        result["bandwidth_share"] = cost.hbm_bytes / statistics.median(steps[1:]) / chip.hbm_bytes_per_second
    return result


def seconds_per_step(times: Sequence[float], tokens_per_call: int) -> float:
    """Returns the time of a decode step, without the prefill and the first call.

    Args:
      times: arrival of each token of a row. The prefill makes the first one. All tokens of a call arrive when it ends;
        at the end, calls make one token each.
      tokens_per_call: decode steps of a call.
    """
    calls = (len(times) - 1) // tokens_per_call
    ends = times[1 : 1 + calls * tokens_per_call : tokens_per_call]
    if len(ends) < 2:
        raise ValueError(f"{len(times)} tokens are a prefill and one call at most; decode more")
    return (ends[-1] - ends[0]) / ((len(ends) - 1) * tokens_per_call)


def compile_decoding(
    config: LlamaConfig, dtype: str, rows: int, prompt: int, new_tokens: int, quantization: Quantization | None
) -> None:
    """Compiles the programs of `sampler.continue_ids`."""
    shapes, device = abstract_params(config, dtype, quantization), jax.default_backend()
    slots, part = slots_of(prompt, new_tokens, config.context_length), padded_slots(prompt)
    options = EngineOptions(rows=rows, slots=slots, longest_part=part)
    width = options.width(prompt)
    assert width is not None
    bound = programs.bind_shared.eval_shape(shapes, None, config=config)
    state = programs.make_state.eval_shape(
        config=config, batch_size=rows, slots=slots, dtype=dtype, first_position=0, alternatives=None,
        has_penalty=False, capacity=None,
    )  # fmt: skip
    group, request = prompts_at_once(width, rows, 1, device), Request([0] * prompt, new_tokens)
    arrivals = Arrivals.of([request], [0], [request.prompt_ids], width=width, group=group)
    stops = np.asarray([-1], np.int32)
    programs.admit.lower(shapes, bound, None, state, arrivals, stops, config=config).compile()
    ended, count = np.zeros(rows, np.int32), tokens_per_program(device)
    programs.decode.lower(shapes, bound, state, ended, stops, config=config, count=count).compile()


def peak_bytes() -> dict[str, int]:
    """Returns the device's peak memory in bytes, or that of the process on a CPU."""
    stats = jax.devices()[0].memory_stats()
    return {"peak_bytes": stats["peak_bytes_in_use"] if stats else protocol.peak_memory()["bytes"]}


if __name__ == "__main__":
    platform.prepare()
    protocol.serve({"about": about, "check_attention": gpu_attention.check, "train": train, "decode": decode})
