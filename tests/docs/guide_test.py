"""The commands of docs/guide.md do what the page says, one after the other, on a random model of four layers."""

from pathlib import Path

import doc_pages
import pytest
from command_runs import Ended, run_command
from doc_pages import shell_lines
from doc_stand_ins import MODELS, furnish
from tiny_runs import sft_rows, write_rows

from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import save_adapter

PAGE = "docs/guide.md"
FEWER = {"--config.steps=60": "--config.steps=3", "--max_new_tokens=40": "--max_new_tokens=2"}
ELSEWHERE = {"analyze", "chat", "compile", "data", "serve"}
"""Commands with tests of their own, which wait for a user or compile for long."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, Ended]]]:
    """The folder after all commands of the page, and how they ended."""
    folder = tmp_path_factory.mktemp("guide")
    base = furnish(folder)
    (folder / MODELS[1]).parent.mkdir()
    (folder / MODELS[1]).symlink_to(folder / MODELS[0])
    write_rows(folder / "mine.jsonl", sft_rows(24))
    quickstart = folder / "runs" / "quickstart" / "adapter.safetensors"
    quickstart.parent.mkdir(parents=True)
    (folder / "adapters").mkdir()
    prompt_format = {"template": "chat", "system": ""}
    save_adapter(init_adapter("aligner", base.config), quickstart, base=base, prompt_format=prompt_format)
    ended = []
    for line in shell_lines(PAGE, doc_pages.read(PAGE)):
        name = line.words[2].removeprefix("aligner_jax.") if line.words[:2] == ["python", "-m"] else ""
        if name and name not in ELSEWHERE:
            arguments = [FEWER.get(word, word) for word in line.words[3:]]
            ended.append((f"{line.place}: {name}", run_command(name, *arguments, folder=folder)))
    return folder, ended


def test_every_command_succeeds(told: tuple[Path, list[tuple[str, Ended]]]):
    _, ended = told
    assert len(ended) > 7
    assert [f"{place}: {end.err}" for place, end in ended if end.status] == []


def test_every_file_is_where_the_page_says(told: tuple[Path, list[tuple[str, Ended]]]):
    folder, _ = told
    mine = folder / "runs" / "mine"
    for file in ("adapter.safetensors", "metrics.jsonl", "checkpoints", "gguf/model.gguf", "card/README.md"):
        assert (mine / file).exists(), file
    assert (folder / "adapters" / "mine.safetensors").exists()


def test_verify_finds_the_trained_adapter(told: tuple[Path, list[tuple[str, Ended]]]):
    _, ended = told
    assert sum(end.out.startswith("adapter active") for _, end in ended) == 2
