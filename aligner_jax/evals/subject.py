"""Subject of an evaluation: a base, perhaps with an adapter, on its devices."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.objectives.reference import adapter_digest
from aligner_jax.peft import Adapter
from aligner_jax.peft.artifact import read_artifact
from aligner_jax.runtime import platform, sharding
from aligner_jax.runtime.config import BaseConfig
from aligner_jax.weights.base import Base, load_base


@dataclasses.dataclass(frozen=True)
class Subject:
    """A base, perhaps with an adapter.

    Attributes:
      name: short, for tables and for the model's column in files of responses.
      prompt_format: how the adapter's training data made prompts; None where that is not recorded.
      batch_size: rows that are computed at once.
    """

    base: Base
    adapter: Adapter | None
    name: str
    prompt_format: PromptFormat | None
    batch_size: int
    mesh: Mesh | None = None
    rules: sharding.Rules = sharding.RULES

    @property
    def tokenizer(self) -> Tokenizer:
        """The base's. Raises InputError where it has none."""
        if self.base.tokenizer is None:
            raise InputError("the base has no tokenizer (no tokenizer.json or tokenizer.model beside its weights)")
        return self.base.tokenizer

    def prompt_format_of(self, template: str, system: str | None) -> PromptFormat:
        """Returns the format of prompts for these options of an evaluation; see `PromptFormat.resolve`."""
        recorded = {} if self.adapter is None else {f"the adapter {self.name}": self.prompt_format}
        return PromptFormat.resolve(template, system, recorded, option="--config.evaluation.")

    def made_from(self) -> dict[str, str]:
        """Returns digests of all that results depend on: the base and how it is held, and the adapter."""
        return {"base": self.base.identity, "adapter": adapter_digest(self.adapter)}


def load_subject(
    config: BaseConfig, adapter_path: str | None, *, mesh: Mesh, rules: sharding.Rules, batch_size: int
) -> Subject:
    """Loads the base of a config, split over the mesh, with the adapter at a path; None: the base alone.

    Raises:
      InputError: either cannot be read, they do not belong together, or the mesh does not divide rows or model.
    """
    check_rows(batch_size, mesh)
    split: Any = functools.partial(sharding.param_shardings, mesh=mesh, rules=rules) if mesh.size > 1 else None
    base = load_base(
        config.path, platform.compute_dtype(config.dtype), quantization=config.quantization,
        group_size=config.group_size, shardings=split,
    )  # fmt: skip
    artifact = None if adapter_path is None else read_artifact(adapter_path, base)
    adapter, prompt_format = (None, None) if artifact is None else (artifact.adapter, artifact.prompt_format)
    name = subject_name(adapter_path)
    return Subject(base, adapter, name, prompt_format, batch_size, mesh if mesh.size > 1 else None, rules)


def check_rows(batch_size: int, mesh: Mesh) -> None:
    """Refuses rows that do not split over the devices. Raises InputError."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % rows:
        raise InputError(f"config.batch_size is {batch_size}, which the mesh's {rows} parts do not divide")


def subject_name(adapter_path: str | None) -> str:
    """Returns a short name: of runs/NAME/adapter.safetensors that of the run, else of the file; of None "base"."""
    if adapter_path is None:
        return "base"
    path = Path(adapter_path).absolute()
    return path.parent.name if path.stem == "adapter" and path.parent.name else path.stem
