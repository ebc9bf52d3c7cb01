"""Feeds: one that reads the policy resumes bit for bit, and a batch with undeclared fields or shapes ends the run."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.feed import DataFeed
from aligner_jax.objectives.step import TrainState
from aligner_jax.runtime.config import parse_config
from aligner_jax.tasks import objectives
from aligner_jax.tasks.sft import SFT
from aligner_jax.tasks.task import Task, TaskInputs
from aligner_jax.train import train

SEEN: list[tuple[int, float]] = []


class ByPolicy:
    """A feed that chooses among its batches by the trained tokens."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches, self._made = batches, 0

    def next(self, state: TrainState) -> Batch:
        tokens_pd = np.asarray(state.trainable["tokens_pd"])
        number = int(np.abs(tokens_pd).sum() * 1e4) + self._made
        SEEN.append((self._made, float(tokens_pd.sum())))
        self._made += 1
        return self._batches[number % len(self._batches)]

    def get_state(self) -> dict[str, int]:
        return {"made": self._made}

    def set_state(self, state: dict[str, int]) -> None:
        self._made = state["made"]


def by_policy(inputs: TaskInputs) -> Task:
    task = SFT.task(inputs)
    return dataclasses.replace(task, feed=ByPolicy([task.feed.next(None) for _ in range(5)]))


@pytest.fixture
def with_feed(monkeypatch: pytest.MonkeyPatch):
    """Adds an objective with the given task, like a new file and a line in the table."""

    def add(task) -> None:
        monkeypatch.setitem(objectives.OBJECTIVES, "other", dataclasses.replace(SFT, task=task))

    return add


def run(settings: dict, workdir: Path):
    config = parse_config({**settings, "objective": {"name": "other"}})
    return train(config, workdir, Console(width=100, file=io.StringIO()))


def test_a_feed_that_looks_at_the_policy_goes_on_bit_for_bit(tiny_run: dict, tmp_path: Path, with_feed):
    with_feed(by_policy)
    SEEN.clear()
    whole = run(tiny_run, tmp_path / "whole")
    of_whole = SEEN.copy()
    assert [made for made, _ in of_whole] == list(range(8))
    assert len({sum_of for _, sum_of in of_whole}) > 4, "the policy changes, and the feed sees it"
    SEEN.clear()
    run({**tiny_run, "steps": 3}, tmp_path / "parts")
    parts = run(tiny_run, tmp_path / "parts")
    assert of_whole == SEEN
    for name, leaf in whole.trainable.items():
        assert np.asarray(leaf).tobytes() == np.asarray(parts.trainable[name]).tobytes()
    metadata = json.loads((tmp_path / "parts" / "checkpoints" / "8" / "run" / "metadata").read_text())
    assert metadata["data_state"] == {"made": 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :-1], r"^tokens_bt of a batch is int32\[2, 127\], but should be int32\[2, 128\]$"),
        (lambda x: x.astype(np.int64), r"^tokens_bt of a batch is int64\[2, 128\], but should be int32\[2, 128\]$"),
        (lambda x: x.tolist(), r"^tokens_bt of a batch is of type list, but should be int32\[2, 128\]$"),
    ],
)
def test_a_batch_that_is_not_as_declared_ends_the_run(tiny_run: dict, tmp_path: Path, with_feed, change, message: str):
    class Other(DataFeed):
        def next(self, state: TrainState) -> Batch:
            batch = super().next(state)
            return dataclasses.replace(batch, tokens_bt=change(batch.tokens_bt))

    def task(inputs: TaskInputs) -> Task:
        made = SFT.task(inputs)
        return dataclasses.replace(made, feed=Other(made.feed._batches))

    with_feed(task)
    with pytest.raises(InputError, match=message):
        run(tiny_run, tmp_path / "run")
