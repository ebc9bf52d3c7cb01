"""Cells of a study, which are an arm, a task, a seed and a learning rate, and their results."""

import dataclasses
from typing import Any, ClassVar, Self

from aligner_jax.studies.stopping import End, Point


@dataclasses.dataclass(frozen=True)
class Cell:
    """One task learned by one arm from one seed at one rate."""

    task: str
    arm: str
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """Name of the cell's files."""
        return f"{self.task}/{self.arm}-{self.seed}-{self.rate:g}"

    def __str__(self) -> str:
        return f"{self.task}, {self.arm}, seed {self.seed}, rate {self.rate:g}"


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a cell.

    Attributes:
      parameters: trained parameters.
      end: reason for the end of the run.
      points: held-out losses over steps.
      kept: step of the adapter that is kept, the one with the least held-out loss.
      loss, base_loss: held-out loss of the adapter and of the base, in nats per target token.
      seconds: time of the run.
      device: kind of the device and version of JAX that it ran with.
    """

    parameters: int
    end: End
    points: tuple[Point, ...]
    kept: int
    loss: float
    base_loss: float
    seconds: float
    device: str

    FIELDS: ClassVar[tuple[str, ...]]

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Returns the result of `as_dict`."""
        return cls(**{**values, "points": tuple(Point(**point) for point in values["points"])})


Result.FIELDS = tuple(field.name for field in dataclasses.fields(Result))
