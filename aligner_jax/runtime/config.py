"""What a training run is configured by: typed, with defaults, and checked before anything is loaded."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from aligner_jax.errors import InputError
from aligner_jax.runtime.fields import number, parse_section

SEEDS = 2**32
"""How many seeds there are: of a larger one JAX without 64 bits drops all above, and it would be another's twin."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The frozen model.

    Attributes:
      path: where it is.
      dtype: what it is held and computed in; "auto": what the device does best.
      model: the name of the published architecture (`aj.llama_config`) that the weights must have; what is planned for
        where there are no weights.
      quantization: what its projections are held in instead, see `model.quantized`.
      group_size: of "int4": numbers that share a scale.
    """

    path: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    model: str | None = None
    quantization: Literal["none", "int8", "int4"] = "none"
    group_size: int = number(32, least=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The method, and its options as they stand in the config: every other key. `tasks.first_adapter` checks them.

    Attributes:
      init_from: a saved adapter of this method and these options to begin with; None begins with a fresh one.
    """

    method: str = "aligner"
    init_from: str | None = None
    options: dict[str, object] = dataclasses.field(default_factory=dict, hash=False)

    @staticmethod
    def arrange(values: dict[str, object]) -> dict[str, object]:
        """What is not of all adapters is an option of the method."""
        named = {key: values.pop(key) for key in ("method", "init_from") if key in values}
        return {"options": values, **named}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Examples and how they become rows.

    Attributes:
      path: the training examples.
      heldout_path: the held-out examples; when None, the last `heldout_rows` examples of `path` are held out, and
        those that share a prompt with one of them.
      format: "auto", a source's name, or "fields".
      fields: for the format "fields": the file's names of the fields, by their meaning.
      system: the system prompt of the chat template; None leaves the template's own.
      loss_on: "all" counts the prompt's tokens too, as the paper did.
      sequence_length: tokens a row.
      batch_size: rows an optimizer step, over all devices and accumulation steps.
      overlong: what happens to an example longer than a row.
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
    """The objective, and its options as they stand in the config: every other key. `tasks.objectives` checks both."""

    name: str = "sft"
    options: dict[str, object] = dataclasses.field(default_factory=dict, hash=False)

    @staticmethod
    def arrange(values: dict[str, object]) -> dict[str, object]:
        """Every field but the name is an option of the objective."""
        named = {key: values.pop(key) for key in ("name",) if key in values}
        return {"options": values, **named}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule; `runtime.optim` explains both.

    Attributes:
      cosine_zero: where "cosine" is 0: after the last update, or at it, as in runs begun by older versions, which go on
        so.
      warmup_steps: optimizer steps until the rate is `lr`; for "paper_as_run" the number that the step is divided by.
      clip: global norm above which gradients are scaled down; None never does.
      accumulate: gradient accumulation steps an optimizer step.
      state_dtype: of the adapter and of Adam's moments.
    """

    lr: float = number(9e-3, least=0)
    weight_decay: float = number(0.02, least=0)
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
    """Many adapters in one run, over the same rows: one for each learning rate or seed.

    Attributes:
      lr: the adapters' rates, in place of `optim.lr`. Metrics have each one's at a step as `learning_rate_i`, and that
        of adapter 0 as `learning_rate`.
      seed: of the adapters' initial values, in place of the run's `seed`, which then is that of the data's order alone.

    Where both are given they are as long as each other and go together.
    """

    lr: tuple[float, ...] = ()
    seed: tuple[int, ...] = ()

    @property
    def num_adapters(self) -> int | None:
        """How many adapters are trained; None where it is one, and no sweep."""
        return max(len(self.lr), len(self.seed)) or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How a step is split over devices; `runtime.sharding` explains it.

    Attributes:
      data: replicas of the base, each with its own rows.
      fsdp: devices that split a replica's parameters for storage, and its rows.
      tensor: devices that split heads, MLP and vocabulary. One of the three may be -1: as many as there are devices.
      slices: TPU slices that are joined by the data centre's network; they split `data`.
      rules: of single logical axes, the mesh axes to split them over in place of the default ones: names with commas
        between, or "none".
      topology: the TPU topology that the config is made for, as "v5e:2x4"; what is planned for by default.
      devices: of the topology so many are planned for; None for all.
    """

    data: int = number(1, least=-1, but=0)
    fsdp: int = number(-1, least=-1, but=0)
    tensor: int = number(1, least=-1, but=0)
    slices: int = number(1, least=1)
    rules: dict[str, str] = dataclasses.field(default_factory=dict, hash=False)
    topology: str | None = None
    devices: int | None = number(None, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """A checkpoint every so many optimizer steps, and how many of the newest are kept."""

    every: int = number(200, least=1)
    keep: int = number(2, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonfiniteConfig:
    """A step whose loss or gradient is not finite is skipped; after so many in a row the run ends."""

    max_skipped: int = number(10, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StallConfig:
    """Seconds after which a run that waits for one thing ends; 0 or None: never.

    Attributes:
      seconds: for a batch, a step or a checkpoint.
      compile_seconds: for the first step and for a held-out evaluation, which are compiled.
    """

    seconds: float | None = number(1800.0, least=0)
    compile_seconds: float | None = number(7200.0, least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The table before and after: the form that answers should have (None: no generation), samples and their length."""

    form: str | None = None
    samples: int = number(3, least=0)
    max_new_tokens: int = number(64, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Trace of a few steps in WORKDIR/profile, for XProf and TensorBoard.

    Attributes:
      steps: optimizer steps that are traced; 0 traces none.
      after: optimizer steps that the process takes before the first traced one, among them the one that compiles.
    """

    steps: int = number(0, least=0)
    after: int = number(5, least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
      steps: optimizer steps.
      remat: what the backward pass recomputes: everything inside a layer, all but the matmuls, or nothing.
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
    remat: Literal["full", "dots", "none"] = "full"
    log_every: int = number(10, least=1)
    eval_every: int = number(0, least=0)
    checkpoint: CheckpointConfig = CheckpointConfig()
    nonfinite: NonfiniteConfig = NonfiniteConfig()
    stall: StallConfig = StallConfig()
    report: ReportConfig = ReportConfig()
    profile: ProfileConfig = ProfileConfig()


def parse_config(config: ConfigDict | Mapping[str, Any]) -> TrainConfig:
    """A `TrainConfig` from a ConfigDict or dict; fields that are left out take their defaults.

    Raises:
      InputError: an unknown or missing field, a value of the wrong type or out of range, or two fields that contradict
        each other; names the fields as "config.optim.lr".
    """
    parsed = parse_section(TrainConfig, config.to_dict() if isinstance(config, ConfigDict) else config, "config")
    _check_together(parsed)
    return parsed


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """The config as nested plain dicts, such that `parse_config(as_dict(config)) == config`."""
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
    schedule, warmup_steps = config.optim.schedule, config.optim.warmup_steps
    if schedule == "constant" and warmup_steps:
        raise InputError(
            f"config.optim.warmup_steps is {warmup_steps}, but config.optim.schedule 'constant' has no warm-up; "
            "'warmup_constant' does"
        )
    if schedule == "paper_as_run" and not warmup_steps:
        raise InputError("config.optim.schedule 'paper_as_run' needs config.optim.warmup_steps (the paper's is 12500)")
    if schedule != "cosine" and config.optim.cosine_zero != OptimConfig.cosine_zero:
        raise InputError(
            f"config.optim.cosine_zero is {config.optim.cosine_zero!r}, but config.optim.schedule is {schedule!r}; "
            "only 'cosine' has use for it"
        )
    if config.data.fields and config.data.format != "fields":
        raise InputError(
            f"config.data.fields is set, but config.data.format is {config.data.format!r}; only 'fields' takes it"
        )
    if config.data.format == "fields" and not config.data.fields:
        raise InputError("config.data.format is 'fields', but config.data.fields names none of the file's fields")
    if config.data.system is not None and config.data.template != "chat":
        raise InputError(f"config.data.system is set, but template {config.data.template!r} has no system prompt")
    _check_base(config)
    _check_sweep(config)


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
