"""Configuration of a training run: typed dataclasses with defaults, checked before anything is loaded."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from aligner_jax.errors import InputError
from aligner_jax.files.identity import later
from aligner_jax.model.remat import AUTO, check_name
from aligner_jax.runtime.fields import number, parse_section
from aligner_jax.runtime.run_sections import (
    CheckpointConfig,
    MetricsConfig,
    NonfiniteConfig,
    ProfileConfig,
    ReportConfig,
    StallConfig,
)

SEEDS = 2**32
"""Number of distinct seeds. Without 64-bit mode JAX truncates larger seeds, so that two of them would be equal."""


Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Dtype of a base's weights and of the computation with them; see `platform.compute_dtype` for "auto"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The frozen model.

    Attributes:
      path: file, folder or hub name of the base.
      dtype: dtype of weights and computation; "auto" is bfloat16 where the device has units for it, else float16 on
        GPUs that have units for that, else float32.
      model: name of a published architecture (`aj.llama_config`), which the weights must have. Without weights, plans
        are made for it.
      quantization: format of the projections in place of `dtype`, see `model.quantized`.
      group_size: number of "int4" weights that share a scale.
    """

    path: str
    dtype: Dtype = "auto"
    model: str | None = None
    quantization: Literal["none", "int8", "int4"] = "none"
    group_size: int = number(32, least=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The adapter method and its options. `tasks.first_adapter` checks them.

    Attributes:
      init_from: a saved adapter of this method and these options to start from; None starts from a fresh one.
      options: all other keys of the section.
    """

    method: str = "aligner"
    init_from: str | None = None
    options: dict[str, object] = dataclasses.field(default_factory=dict, hash=False)

    @staticmethod
    def arrange(values: dict[str, object]) -> dict[str, object]:
        """Moves fields that not all methods share into `options`."""
        named = {key: values.pop(key) for key in ("method", "init_from") if key in values}
        return {"options": values, **named}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training and held-out examples, and the options that make rows of them.

    Attributes:
      path: file of the training examples.
      heldout_path: file of the held-out examples; if None, the last `heldout_rows` examples of `path` are held out,
        with all that share a prompt with one of them.
      format: "auto", a source's name, or "fields".
      fields: for the format "fields": names of the file's fields, by meaning.
      system: system prompt of the chat template; None keeps the template's own.
      loss_on: tokens that count in the loss; "all" includes the prompt's tokens, as the paper did.
      sequence_length: tokens per row.
      batch_size: rows per optimizer step, over all devices and accumulation steps.
      packing: True if a row may hold several documents.
      overlong: treatment of an example longer than a row.
    """

    path: str
    heldout_path: str | None = None
    heldout_rows: int = number(0, least=0)
    format: str = "auto"
    fields: dict[str, str] = dataclasses.field(default_factory=dict, hash=False)
    template: Literal["alpaca", "chat"] = "alpaca"
    system: str | None = None
    loss_on: Literal["answers", "all"] = "answers"
    sequence_length: int = number(512, least=2)
    batch_size: int = number(64, least=1)
    packing: bool = True
    overlong: Literal["error", "truncate", "drop"] = "error"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The objective and its options, which are all other keys of the section. `tasks.objectives` checks both."""

    name: str = "sft"
    options: dict[str, object] = dataclasses.field(default_factory=dict, hash=False)

    @staticmethod
    def arrange(values: dict[str, object]) -> dict[str, object]:
        """Moves all fields but the name into `options`."""
        named = {key: values.pop(key) for key in ("name",) if key in values}
        return {"options": values, **named}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule; `runtime.optim` explains both.

    Attributes:
      name: "adamw"; "lion" (arXiv 2302.06675); or "muon", for the trained matrices, with AdamW for the other arrays.
      gate_rate: factor on the rate of arrays named gates_*.
      decay_on: arrays that weight decay applies to: all, or those named tokens_* alone.
      cosine_zero: point at which the "cosine" schedule reaches 0: after the last update, or at it. The latter is the
        schedule of runs that older versions began.
      warmup_steps: optimizer steps until the rate is `lr`; for "paper_as_run" the divisor of the step.
      clip: global norm above which gradients are scaled down; None disables clipping.
      accumulate: gradient accumulation steps per optimizer step.
      state_dtype: dtype of the adapter and of Adam's moments.
    """

    name: Literal["adamw", "lion", "muon"] = later("adamw")
    lr: float = number(9e-3, least=0)
    gate_rate: float = number(1.0, least=0, later=True)
    weight_decay: float = number(0.02, least=0)
    decay_on: Literal["all", "tokens"] = later("all")
    b1: float = number(0.9, least=0, below=1)
    b2: float = number(0.999, least=0, below=1)
    eps: float = number(1e-8, above=0)
    schedule: Literal["constant", "cosine", "warmup_constant", "paper_as_run"] = "constant"
    cosine_zero: Literal["after_last", "at_last"] = "after_last"
    warmup_steps: int = number(0, least=0)
    clip: float | None = number(None, above=0)
    accumulate: int = number(1, least=1)
    state_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Several adapters trained in one run over the same rows: one per learning rate or seed.

    If both are given they have the same length, and adapter i has rate i and seed i.

    Attributes:
      lr: learning rates of the adapters, in place of `optim.lr`. Metrics report the current rate of adapter i as
        `learning_rate_i`, and that of adapter 0 also as `learning_rate`.
      seed: seeds of the adapters' initial values. The run's own `seed` then sets only the data's order and dropout.
    """

    lr: tuple[float, ...] = ()
    seed: tuple[int, ...] = ()

    @property
    def num_adapters(self) -> int | None:
        """Number of adapters in the sweep; None without a sweep."""
        return max(len(self.lr), len(self.seed)) or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The device mesh and its sharding rules; `runtime.sharding` explains both.

    Attributes:
      data: replicas of the base, each with its own rows.
      fsdp: devices that split a replica's parameters for storage, and its rows.
      tensor: devices that split heads, MLP and vocabulary. One of `data`, `fsdp` and `tensor` may be -1, to use all
        remaining devices.
      slices: TPU slices, joined by the data centre's network; they split `data`.
      rules: mesh axes of single logical axes, in place of the defaults: names separated by commas, or "none".
      topology: TPU topology that the config is made for, such as "v5e:2x4"; plans use it by default.
      devices: number of the topology's devices to plan for; None plans for all.
    """

    data: int = number(1, least=-1, but=0)
    fsdp: int = number(-1, least=-1, but=0)
    tensor: int = number(1, least=-1, but=0)
    slices: int = number(1, least=1)
    rules: dict[str, str] = dataclasses.field(default_factory=dict, hash=False)
    topology: str | None = None
    devices: int | None = number(None, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Configuration of one training run.

    Attributes:
      steps: optimizer steps.
      seed: seed of the adapter's initial values, the data's order and dropout.
      remat: recomputation in the backward pass: "full", all of a layer; "dots", all but the matmuls; "dots:N", all but
        the matmuls in the last N layers and all of the layers below; "none"; or "auto", the least that fits the
        devices' memory.
      log_every: optimizer steps between two lines of metrics.
      eval_every: optimizer steps between two held-out evaluations; 0 evaluates at the end only.
    """

    base: BaseConfig
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    sweep: SweepConfig = SweepConfig()
    mesh: MeshConfig = MeshConfig()
    steps: int = number(least=1)
    seed: int = number(0, least=0, below=SEEDS)
    remat: str = "full"
    log_every: int = number(10, least=1)
    eval_every: int = number(0, least=0)
    checkpoint: CheckpointConfig = dataclasses.field(default=CheckpointConfig())
    nonfinite: NonfiniteConfig = dataclasses.field(default=NonfiniteConfig())
    stall: StallConfig = dataclasses.field(default=StallConfig())
    report: ReportConfig = dataclasses.field(default=ReportConfig())
    profile: ProfileConfig = dataclasses.field(default=ProfileConfig())
    metrics: MetricsConfig = dataclasses.field(default=MetricsConfig())


def parse_config(config: ConfigDict | Mapping[str, Any]) -> TrainConfig:
    """Returns the `TrainConfig` of a ConfigDict or dict; fields that are left out take their defaults.

    Raises:
      InputError: it is a config of an evaluation, an unknown or missing field, a value of the wrong type or out of
        range, or two fields that contradict each other; names the fields as "config.optim.lr".
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    if "evaluation" in values and "data" not in values:
        raise InputError(
            "the config is one of an evaluation: give the config of a training, such as configs/quickstart.py"
        )
    parsed = parse_section(TrainConfig, values, "config")
    _check_together(parsed)
    return parsed


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """Returns the config as nested plain dicts, such that `parse_config(as_dict(config)) == config`."""
    plain = dataclasses.asdict(config)
    for section in ("adapter", "objective"):
        plain[section] |= plain[section].pop("options")
    return plain


def _check_together(config: TrainConfig) -> None:
    batch_size, accumulate = config.data.batch_size, config.optim.accumulate
    if batch_size % accumulate:
        raise InputError(
            f"config.data.batch_size is {batch_size}, which config.optim.accumulate, {accumulate}, does not divide"
        )
    _check_optim(config.optim)
    if config.data.fields and config.data.format != "fields":
        raise InputError(
            f"config.data.fields is set, but config.data.format is {config.data.format!r}; only 'fields' takes it"
        )
    if config.data.format == "fields" and not config.data.fields:
        raise InputError("config.data.format is 'fields', but config.data.fields names none of the file's fields")
    if config.remat != AUTO:
        try:
            check_name(config.remat, also=f", {AUTO}")
        except InputError as error:
            raise InputError(f"config.{error}") from None
    if config.data.system is not None and config.data.template != "chat":
        raise InputError(f"config.data.system is set, but template {config.data.template!r} has no system prompt")
    _check_base(config)
    _check_sweep(config)


def _check_optim(optim: OptimConfig) -> None:
    schedule, warmup_steps = optim.schedule, optim.warmup_steps
    if schedule == "constant" and warmup_steps:
        raise InputError(
            f"config.optim.warmup_steps is {warmup_steps}, but config.optim.schedule 'constant' has no warm-up; "
            "'warmup_constant' does"
        )
    if schedule == "paper_as_run" and not warmup_steps:
        raise InputError("config.optim.schedule 'paper_as_run' needs config.optim.warmup_steps (the paper's is 12500)")
    if schedule != "cosine" and optim.cosine_zero != OptimConfig.cosine_zero:
        raise InputError(
            f"config.optim.cosine_zero is {optim.cosine_zero!r}, but config.optim.schedule is {schedule!r}; "
            "only 'cosine' has use for it"
        )
    for name in ("name", "gate_rate", "decay_on"):
        value = getattr(optim, name)
        if optim.state_dtype == "bfloat16" and value != getattr(OptimConfig, name):
            raise InputError(
                f"config.optim.{name} is {value!r}, but config.optim.state_dtype 'bfloat16' is AdamW as the authors "
                "ran it: set 'float32'"
            )


def _check_base(config: TrainConfig) -> None:
    base = config.base
    if base.quantization != "int4" and base.group_size != BaseConfig.group_size:
        raise InputError(
            f"config.base.group_size is {base.group_size}, but config.base.quantization {base.quantization!r} has no "
            "groups; 'int4' does"
        )


def _check_sweep(config: TrainConfig) -> None:
    sweep = config.sweep
    for name, values in (("lr", sweep.lr), ("seed", sweep.seed)):
        for i, value in enumerate(values):
            if value < 0:
                raise InputError(f"config.sweep.{name}[{i}] is {value}, but should be 0 or more")
            if name == "seed" and value >= SEEDS:
                raise InputError(f"config.sweep.seed[{i}] is {value}, but should be less than {SEEDS}")
    if sweep.lr and sweep.seed and len(sweep.lr) != len(sweep.seed):
        raise InputError(
            f"config.sweep.lr has {len(sweep.lr)} values and config.sweep.seed {len(sweep.seed)}, but they go together"
        )
    if sweep.seed and config.adapter.init_from is not None:
        raise InputError(
            "config.sweep.seed and config.adapter.init_from are both set, but a saved adapter has the same initial "
            "values for every seed"
        )
    if sweep.num_adapters and config.report.form is not None:
        raise InputError("config.report.form is set, but the report on a sweep generates no answers")
