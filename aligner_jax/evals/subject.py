"""Subject of an evaluation: a base, with or without an adapter, on its devices."""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.objectives.reference import adapter_digest
from aligner_jax.peft import Adapter
from aligner_jax.peft.artifact import Artifact, read_artifact
from aligner_jax.runtime import sharding
from aligner_jax.runtime.config import BaseConfig
from aligner_jax.weights.base import Base
from aligner_jax.weights.on_mesh import load_base_over, spread


@dataclasses.dataclass(frozen=True)
class Subject:
    """A base, with or without an adapter.

    Attributes:
      base: the base.
      adapter: the adapter; None for the base alone.
      name: short name, for tables and for the model's field in files of responses.
      artifact: content of the adapter's file; None without an adapter, or if it has no file.
      batch_size: rows per batch, over all devices.
      mesh: devices that the base is sharded over; None for a single device.
      rules: logical axis rules of the sharding.
    """

    base: Base
    adapter: Adapter | None
    name: str
    artifact: Artifact | None
    batch_size: int
    mesh: Mesh | None = None
    rules: sharding.Rules = sharding.RULES

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the base. Raises InputError if it has none."""
        if self.base.tokenizer is None:
            raise InputError("the base has no tokenizer (no tokenizer.json or tokenizer.model beside its weights)")
        return self.base.tokenizer

    @property
    def prompt_format(self) -> PromptFormat | None:
        """Prompt format of the adapter's training data; see `Artifact.prompt_format`."""
        return None if self.artifact is None else self.artifact.prompt_format

    def prompt_format_of(self, template: str, system: str | None) -> PromptFormat:
        """Returns the prompt format for these options of an evaluation; see `PromptFormat.resolve`."""
        recorded = {} if self.adapter is None else {f"the adapter {self.name}": self}
        return PromptFormat.resolve(template, system, recorded, option="--config.evaluation.")

    def made_from(self) -> dict[str, str]:
        """Returns what results depend on: fingerprint, dtype and quantization of the base, digest of the adapter."""
        return {"base": self.base.identity, "adapter": adapter_digest(self.adapter)}


def load_subject(
    config: BaseConfig,
    adapter_path: str | None,
    *,
    mesh: Mesh,
    rules: sharding.Rules,
    batch_size: int,
    base: Base | None = None,
) -> Subject:
    """Loads the base of a config, sharded over the mesh, and an adapter.

    Args:
      config: config of the base.
      adapter_path: adapter file or folder; None loads the base alone.
      mesh: devices.
      rules: logical axis rules of the sharding.
      batch_size: rows per batch, over all devices.
      base: the base, if it is loaded already, in place of that of the config.

    Raises:
      InputError: the base or the adapter cannot be read, the adapter belongs to another base, or the mesh does not
        divide rows or model.
    """
    check_rows(batch_size, mesh)
    base = load_base_over(mesh, rules, config) if base is None else spread(base, mesh, rules)
    artifact = None if adapter_path is None else read_artifact(adapter_path, base)
    adapter = None if artifact is None else artifact.adapter
    name = subject_name(adapter_path)
    return Subject(base, adapter, name, artifact, batch_size, mesh if mesh.size > 1 else None, rules)


def check_rows(batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch size that the mesh does not divide. Raises InputError."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % rows:
        raise InputError(f"config.batch_size is {batch_size}, which the mesh's {rows} parts do not divide")


def subject_name(adapter_path: str | None) -> str:
    """Returns a short name: NAME for runs/NAME/adapter.safetensors, else the file's; "base" without an adapter."""
    if adapter_path is None:
        return "base"
    path = Path(adapter_path).absolute()
    return path.parent.name if path.stem == "adapter" and path.parent.name else path.stem
