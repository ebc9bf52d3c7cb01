"""scripts/pods/Dockerfile: it copies what is there, and holds what the recipes' commands need."""

import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def instructions() -> list[list[str]]:
    text = (ROOT / "scripts" / "pods" / "Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def copied() -> list[str]:
    return [source for words in instructions() if words[0] == "COPY" for source in words[1:-1]]


def test_it_copies_what_is_there():
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize("path", ["configs/llama7b_alpaca.py", "scripts/pods/worker.sh", "aligner_jax/train.py"])
def test_what_the_commands_name_is_in_the_image(path: str):
    assert any(Path(path).is_relative_to(source) for source in copied())


def test_the_python_is_one_that_the_package_runs_on():
    [base] = [words[1] for words in instructions() if words[0] == "FROM"]
    assert base.startswith("python:3.12")


def test_models_and_runs_stay_outside():
    assert not {".", "models", "runs"} & set(copied())
