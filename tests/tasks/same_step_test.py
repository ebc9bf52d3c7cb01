"""Processes compare their steps before the first one, and a run records which attention kernels it uses."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from whole_runs import run

from aligner_jax.errors import InputError
from aligner_jax.tasks import loop, same_step
from aligner_jax.tasks.same_step import RECORD, check_same_step

KERNEL = "'triton' (NVIDIA L4, bfloat16, head dim 64, packed rows of 256)"
ADD, MULTIPLY = (jax.jit(lambda x, y: x + y), jax.jit(lambda x, y: x * y))
COMPILED = ADD.lower(jnp.ones(3), jnp.ones(3)).compile()


def program(step: Any) -> Any:
    return SimpleNamespace(step=step)


def texts(steps: list[Any], verdicts: list[dict[str, bool]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns what each of two processes tells the others; runs the check as process 0, with the other's text."""
    told: list[str] = []
    monkeypatch.setattr(same_step.distributed, "is_alone", lambda: False)
    monkeypatch.setattr(same_step.agreement, "exchange", lambda text: [told.append(text) or text, *told[:-1]])
    for step, each in zip(reversed(steps), reversed(verdicts), strict=True):
        monkeypatch.setattr(same_step.trusted, "verdicts", lambda each=each: each)
        check_same_step(program(step), (jnp.ones(3), jnp.ones(3)))
    return told


def test_processes_with_one_step_go_on(monkeypatch: pytest.MonkeyPatch):
    # Process 0 has compared one more kernel, for a program that it alone runs.
    first, second = texts([ADD, ADD], [{KERNEL: True, "another": False}, {KERNEL: True}], monkeypatch)
    assert json.loads(first)[0] == json.loads(second)[0]
    # The program of a compiled step is not known any more.
    texts([ADD, COMPILED], [{}, {}], monkeypatch)


@pytest.mark.parametrize(
    ("steps", "used", "reason"),
    [
        ([ADD, MULTIPLY], [True, True], "its program differs"),
        ([ADD, ADD], [True, False], "attention by 'triton' .*packed rows of 256.* fails on one of them"),
        ([COMPILED, COMPILED], [False, True], "attention by 'triton' .* fails on one of them"),
    ],
    ids=["program", "kernel", "compiled"],
)
def test_processes_with_different_steps_are_refused(monkeypatch, steps: list[Any], used: list[bool], reason: str):
    sentence = rf"^process 1 of 2 would take another training step than process 0 \({reason}\): all processes need"
    with pytest.raises(InputError, match=sentence):
        texts(steps, [{KERNEL: each} for each in used], monkeypatch)


def test_a_process_alone_lowers_nothing():
    check_same_step(program(None), ())


def test_places_in_kernels_are_left_out():
    text = 'custom_call @triton(%0) {ir = "%s", name = "forward"}'
    one, other = (same_step._PAYLOAD.sub("", text.replace("%s", path * 50)) for path in ("/home/a\\22", "/opt/b\\22"))
    assert one == other != text.replace("%s", "")
    assert 'name = "forward"' in one


def test_a_run_checks_its_first_step_and_says_if_it_goes_on_with_other_kernels(
    tiny_run: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checked = []
    monkeypatch.setattr(loop, "check_same_step", lambda *arguments: checked.append(arguments))
    used: dict[str, bool] = {}
    monkeypatch.setattr(same_step.trusted, "verdicts", lambda: used)
    for steps, verdict, sentence in (
        (1, None, None),
        (2, True, None),
        (3, False, f"attention by {KERNEL} fails, but was used in this run's earlier steps: they round differently"),
        (4, True, f"attention by {KERNEL} is used, but failed in this run's earlier steps: they round differently"),
        (5, True, None),
    ):
        used |= {} if verdict is None else {KERNEL: verdict}
        _, text = run({**tiny_run, "steps": steps}, tmp_path / "run")
        words = " ".join(text.split())
        assert ("attention by" in words) == (sentence is not None)
        assert sentence is None or sentence in words
        assert (tmp_path / "run" / RECORD).exists() == (verdict is not None)
        assert len(checked) == steps
    assert json.loads((tmp_path / "run" / RECORD).read_text()) == {KERNEL: True}
