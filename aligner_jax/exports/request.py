"""Choices of one export, and the checks that they go together."""

import dataclasses
import math
from pathlib import Path
from typing import cast

from aligner_jax.errors import InputError
from aligner_jax.peft.fold import Target
from aligner_jax.weights.hub import is_hub_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Choices of one export; those that are None were not made and take their defaults.

    Attributes:
      adapters: files, folders or hub names of adapters, in the order in which they apply.
      to: form to write, a key of `forms.EXPORT_FORMS` or "adapter".
      out: folder to write, new or empty.
      base: file, folder or hub name of the base; only the form "adapter" needs none.
      strength: factor on what every adapter adds; default 1.
      dtype: dtype of written weights; default "stored".
      bias: projection whose bias holds a prefix of one token; default "o".
      nearest: True writes the bias that is closest to an adapter of several prefix tokens on the examples of `data`.
      data: file of held-out examples.
      rows: most examples of `data` that are used; default 256.
      template: template of these examples; default "auto".
      run: folder of the run that the model card describes.
      base_model: hub name of the base, for the model card and for PEFT's configuration.
      push: name of a new repository on a hub, to which the folder is uploaded.
      public: True makes that repository a public one.
    """

    adapters: tuple[str, ...]
    to: str
    out: Path
    base: str | None = None
    strength: float | None = None
    dtype: str | None = None
    bias: Target | None = None
    nearest: bool | None = None
    data: str | None = None
    rows: int | None = None
    template: str | None = None
    run: str | None = None
    base_model: str | None = None
    push: str | None = None
    public: bool | None = None

    @property
    def strength_or_one(self) -> float:
        """Factor on what the adapters add."""
        return 1.0 if self.strength is None else self.strength

    def check(self) -> None:
        """Refuses choices that do not go together. Raises InputError; it names them as the command's flags."""
        if self.base is None and self.to != "adapter":
            raise InputError(
                f"--to={self.to} writes a base or is checked against one: give the base, as --base=PATH does"
            )
        if self.dtype == "q8_0" and self.to != "gguf":
            raise InputError(f"--dtype=q8_0 is a type of GGUF files, and --to={self.to} has none")
        if not math.isfinite(self.strength_or_one):
            raise InputError(f"--strength={self.strength} is not a finite number")
        self._check_nearest()
        if self.to == "peft" and self.dtype is not None:
            raise InputError("--dtype is of a base's weights, and --to=peft writes adapters, which are float32")
        if self.to == "peft" and self.push and not (self.base_model or is_hub_name(cast(str, self.base))):
            raise InputError(
                f"PEFT's configuration would publish the path --base={self.base}, where nobody else has the base: add "
                f"--base_model=ORG/NAME"
            )
        if self.to == "adapter":
            for name in ("strength", "dtype", "bias", "nearest"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name} is of a base's weights, and --to=adapter writes the adapter as it is")
            if len(self.adapters) > 1:
                raise InputError("--to=adapter writes one adapter to a folder: give one --adapter")
        if self.public and not self.push:
            raise InputError("--public is of a repository that --push=ORG/NAME makes")

    def _check_nearest(self) -> None:
        if self.nearest and not self.data:
            raise InputError("--nearest needs held-out examples on which it compares: add --data=FILE")
        for name in ("data", "rows", "template"):
            if getattr(self, name) is not None and not self.nearest:
                raise InputError(f"--{name} is of --nearest, which approximates an adapter of several prefix tokens")
        if self.nearest and len(self.adapters) > 1:
            raise InputError("--nearest approximates one adapter: give one --adapter")
        if self.nearest and self.bias == "v":
            raise InputError("--nearest makes a bias of the output projection, so --bias=v does not go with it")
