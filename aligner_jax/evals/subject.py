"""What is evaluated: a base, perhaps with an adapter, on its devices."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from aligner_jax.data.templates import render_prompt
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.objectives.reference import adapter_digest
from aligner_jax.peft import Adapter
from aligner_jax.peft.artifact import load_adapter, prompt_template, recorded_prompt_format
from aligner_jax.runtime import platform, sharding
from aligner_jax.runtime.config import BaseConfig
from aligner_jax.weights.base import Base, load_base

TemplateName = Literal["auto", "none", "alpaca", "chat"]
"""What `Subject.wrapped` takes."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A base, perhaps with an adapter.

    Attributes:
      name: short, for tables and for the model's column in files of responses.
      prompt_format: how the adapter's training data made prompts; empty where that is not recorded.
      batch_size: rows that are computed at once.
    """

    base: Base
    adapter: Adapter | None
    name: str
    prompt_format: dict[str, str | None]
    batch_size: int
    mesh: Mesh | None = None
    rules: sharding.Rules = sharding.RULES

    @property
    def tokenizer(self) -> Tokenizer:
        """The base's. Raises InputError where it has none."""
        if self.base.tokenizer is None:
            raise InputError("the base has no tokenizer (no tokenizer.json or tokenizer.model beside its weights)")
        return self.base.tokenizer

    def wrapped(self, instruction: str, template: str, *, system: str | None = None) -> str:
        """The text whose continuation answers the instruction.

        Args:
          template, system: see `chosen_format`.

        Raises:
          InputError: the base has no tokenizer, or its tokenizer no chat template; or see `chosen_format`.
        """
        template, system = self.chosen_format(template, system)
        return (
            instruction if template == "none" else render_prompt(instruction, self.tokenizer, template, system=system)
        )

    def chosen_format(self, template: str, system: str | None = None) -> tuple[str, str | None]:
        """What prompts are made by: the name of a template or "none", and a system prompt.

        Args:
          template: "alpaca" or "chat"; "none": the instruction as it is; "auto": as the adapter's training data had it,
            and without an adapter "none".
          system: a system prompt for "chat", in place of a recorded one.

        Raises:
          InputError: "auto", and the adapter's file does not record it, as those of other projects do not.
        """
        chosen = prompt_template(
            template, self.prompt_format, adapter=f"the adapter {self.name}" if self.adapter is not None else None,
            option="--config.evaluation.template",
        )  # fmt: skip
        if template == "auto" and system is None:
            system = self.prompt_format.get("system")
        return chosen, system

    def made_from(self) -> dict[str, str]:
        """What its results depend on: the base and how it is held, and the adapter, each as a digest."""
        return {"base": self.base.identity, "adapter": adapter_digest(self.adapter)}


def load_subject(
    config: BaseConfig, adapter_path: str | None, *, mesh: Mesh, rules: sharding.Rules, batch_size: int
) -> Subject:
    """The base of a config, split over the mesh, with the adapter at a path; None: the base alone.

    Raises:
      InputError: either cannot be read, they do not belong together, or the mesh does not divide rows or model.
    """
    check_rows(batch_size, mesh)
    split: Any = functools.partial(sharding.param_shardings, mesh=mesh, rules=rules) if mesh.size > 1 else None
    base = load_base(
        config.path, platform.compute_dtype(config.dtype), quantization=config.quantization,
        group_size=config.group_size, shardings=split,
    )  # fmt: skip
    adapter = None if adapter_path is None else load_adapter(adapter_path, base)
    prompt_format = {} if adapter_path is None else recorded_prompt_format(adapter_path)
    name = subject_name(adapter_path)
    return Subject(base, adapter, name, prompt_format, batch_size, mesh if mesh.size > 1 else None, rules)


def check_rows(batch_size: int, mesh: Mesh) -> None:
    """Refuses rows that do not split over the devices. Raises InputError."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % rows:
        raise InputError(f"config.batch_size is {batch_size}, which the mesh's {rows} parts do not divide")


def subject_name(adapter_path: str | None) -> str:
    """Short, of an adapter's path: its run's for runs/NAME/adapter.safetensors, else the file's; "base" of None."""
    if adapter_path is None:
        return "base"
    path = Path(adapter_path).absolute()
    return path.parent.name if path.stem == "adapter" and path.parent.name else path.stem
