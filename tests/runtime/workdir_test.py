"""A run's folder: missing, emptied, damaged file by file, mixed with another's, or different between processes."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_runs
from rich.console import Console
from whole_runs import run

from aligner_jax.errors import InputError
from aligner_jax.runtime.checkpoint import Checkpoints
from aligner_jax.runtime.config import parse_config
from aligner_jax.runtime.metrics import MetricsWriter
from aligner_jax.runtime.same_run import Origin, check_same_run
from aligner_jax.runtime.workdir import Workdir
from aligner_jax.train import train
from scripts.lib.tiny_llama import write_tiny_llama


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "a bit": _flip,
    "zeros": lambda content: bytes(len(content)),
    "more": lambda content: content + b"\xff\x00{",
    "deep": lambda content: b"[" * 20_000,
    "deep objects": lambda content: b'{"step":' * 20_000,
    "digits": lambda content: b'{"step": ' + b"9" * 5000 + b', "optim": ' + b"9" * 5000 + b"}\n",
    "another type": lambda content: b'[1, "a", null]\n',
    "types within": lambda content: b'{"step": true, "base": 3, "optim": [], "leaves": 1, "data_state": NaN}\n',
    "twice": lambda content: content[:-2] + b', "step": 1, "step": 2}\n',
    "no numbers": lambda content: b'{"step": NaN}\n{"step": Infinity}\n',
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The config of a tiny run, and its workdir."""
    folder = tmp_path_factory.mktemp("whole")
    write_tiny_llama(folder / "tiny")
    data = tiny_runs.write_rows(folder / "data.jsonl", tiny_runs.sft_rows())
    settings = {**tiny_runs.settings_of(folder / "tiny", data), "checkpoint": {"every": 4}}
    run(settings, folder / "run")
    return settings, folder / "run"


def _cases(good: Path, folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yields copies of a workdir with one damaged file, and the kind of damage."""
    for kind, damage in DAMAGES.items():
        workdir = Path(shutil.copytree(good, folder / kind.replace(" ", "_")))
        (workdir / name).write_bytes(damage((workdir / name).read_bytes()))
        yield kind, workdir


def test_a_damaged_config_json_is_one_sentence(whole: tuple[dict, Path], tmp_path: Path):
    config = parse_config(whole[0])
    assert check_same_run(config, whole[1]) == config
    for kind, workdir in _cases(whole[1], tmp_path, "config.json"):
        if kind == "a bit":
            continue  # the name may be the run's own
        with pytest.raises(InputError, match=rf"^{workdir}/config.json cannot be used: .*or choose another --workdir$"):
            check_same_run(config, workdir)


def test_a_damaged_inputs_json_is_one_sentence(whole: tuple[dict, Path], tmp_path: Path):
    input_digests = json.loads((whole[1] / "inputs.json").read_text())
    Origin(parse_config(whole[0]), input_digests, whole[1]).check(None, whole[1])
    for _, workdir in _cases(whole[1], tmp_path, "inputs.json"):
        with pytest.raises(
            InputError, match=rf"^{workdir}(/inputs.json cannot be used: | holds a run that began with a)"
        ):
            Origin(parse_config(whole[0]), input_digests, workdir).check(None, workdir)


def test_damaged_metrics_are_one_sentence_or_lose_what_was_cut(whole: tuple[dict, Path], tmp_path: Path):
    outcomes = {}
    for kind, workdir in _cases(whole[1], tmp_path, "metrics.jsonl"):
        try:
            MetricsWriter(workdir, resume_step=8).close()
            lines = (workdir / "metrics.jsonl").read_text().splitlines()
            outcomes[kind] = [json.loads(line)["step"] for line in lines]
        except InputError as error:
            outcomes[kind] = str(error)
    assert outcomes["empty"] == outcomes["zeros"] == outcomes["deep"] == outcomes["deep objects"] == []
    assert outcomes["more"] == list(range(1, 9))
    content = (whole[1] / "metrics.jsonl").read_bytes()
    cut = content[: len(content) // 2].count(b"\n")
    assert cut in (3, 4)
    assert outcomes["cut"] == list(range(1, cut + 1))
    for kind in ("digits", "another type", "types within", "twice", "no numbers"):
        assert re.fullmatch(
            r".*/metrics\.jsonl:[18] is not a line of metrics; move the file away to go on", outcomes[kind]
        )


@pytest.mark.parametrize("name", ["run/metadata", "checksums.json", "state/_METADATA", "state/manifest.ocdbt"])
def test_a_checkpoint_with_a_damaged_file_is_set_aside(whole: tuple[dict, Path], tmp_path: Path, name: str):
    for _, workdir in _cases(whole[1], tmp_path, f"checkpoints/8/{name}"):
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            assert checkpoints._newest_intact() == 4
        assert sorted(os.listdir(workdir / "checkpoints")) == ["4", "damaged_8"]


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"step": 8, "leaves": [], "data_state": {}}', b"[" * 20_000])
def test_a_checkpoint_that_says_something_else_with_a_right_checksum_is_set_aside(
    whole, tmp_path: Path, content: bytes
):
    folder = Path(shutil.copytree(whole[1] / "checkpoints", tmp_path / "checkpoints")) / "8"
    (folder / "run" / "metadata").write_bytes(content)
    checksums = json.loads((folder / "checksums.json").read_text())
    checksums["run/metadata"] = hashlib.sha256(content).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(checksums))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints._newest_intact() == 4


@pytest.mark.parametrize(
    "origin", [3, {}, {"config": {}, "inputs": {}}, {"config": 1}, {"config": {"steps": {}}, "inputs": []}]
)
def test_a_checkpoint_that_does_not_say_of_what_run_it_is(whole: tuple[dict, Path], origin: object):
    input_digests = json.loads((whole[1] / "inputs.json").read_text())
    with pytest.raises(InputError, match=rf"^{whole[1]}/8"):
        Origin(parse_config(whole[0]), input_digests, whole[1]).check(origin, whole[1] / "8")


@pytest.mark.parametrize("name", ["config.json", "inputs.json"])
def test_checkpoints_without_what_they_were_made_from_are_not_trusted(whole, tmp_path: Path, name: str):
    settings, good = whole
    workdir = Path(shutil.copytree(good, tmp_path / "run"))
    (workdir / name).unlink()
    # Without the check, a run with another rate would resume silently.
    for changed in (settings, {**settings, "optim": {"lr": 1.0}, "steps": 9}):
        with pytest.raises(InputError, match=rf"^.*/{name} is missing, .*: put it back, or choose another --workdir$"):
            run(changed, workdir) if name == "config.json" else run(settings, workdir)
    assert not (workdir / name).exists()


def test_metrics_that_are_missing_begin_anew(whole, tmp_path: Path):
    settings, good = whole
    workdir = Path(shutil.copytree(good, tmp_path / "run"))
    (workdir / "metrics.jsonl").unlink()
    shutil.rmtree(workdir / "checkpoints" / "8")
    run(settings, workdir)
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [5, 6, 7, 8]
    assert (workdir / "adapter.safetensors").read_bytes() == (good / "adapter.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"optim": {"lr": 0.02}},
            r"8 is of a run with another configuration \(optim.lr is 0.01 and was 0.02\): put it",
        ),
        ({"data": None}, "8 is of a run that began with another training data: put it back where it was written"),
    ],
)
def test_a_checkpoint_of_another_workdir_is_refused_by_name(whole, tmp_path: Path, change: dict, sentence: str):
    settings, good = whole
    other, workdir = dict(settings), Path(shutil.copytree(good, tmp_path / "run"))
    if "data" in change:
        data = Path(settings["data"]["path"])
        before = data.read_text()
        data.write_text(before.replace("number 3", "number 33"))
        run(other, tmp_path / "other")
        data.write_text(before)
    else:
        run({**settings, **change}, tmp_path / "other")
    shutil.rmtree(workdir / "checkpoints" / "8")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "8", workdir / "checkpoints" / "8")
    with pytest.raises(InputError, match=sentence):
        run(settings, workdir)
    assert (workdir / "checkpoints" / "8").is_dir()


class _Screen:
    """A console's file that calls a function once a text is printed."""

    def __init__(self, text: str, act: Callable[[], object]) -> None:
        self._text, self._act = text, act

    def write(self, text: str) -> int:
        if self._act is not None and self._text in text:
            act, self._act = self._act, None
            act()
        return len(text)

    def flush(self) -> None:
        pass


def _remove(workdir: Path) -> None:
    # A save may be making files meanwhile.
    for _ in range(100):
        shutil.rmtree(workdir, ignore_errors=True)


@pytest.mark.parametrize("text", ["adapter: ", "step 4/8", "step 8/8"])
@pytest.mark.parametrize(
    "act", [_remove, lambda workdir: workdir.rename(workdir.with_name("moved"))], ids=["removed", "moved"]
)
def test_a_run_whose_folder_goes_ends_and_makes_no_other(whole, tmp_path: Path, act: Callable, text: str):
    settings, _ = whole
    workdir = tmp_path / "run"
    console = Console(width=100, file=_Screen(text, lambda: act(workdir)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        InputError, match=r"run(/config\.json)? has gone while the run was on, so the run ends: if it was"
    ):
        train(parse_config(settings), workdir, console)
    assert not workdir.exists()
    if (tmp_path / "moved").exists():
        (tmp_path / "moved").rename(workdir)
        run(settings, workdir)
        assert (workdir / "adapter.safetensors").exists()


def test_an_emptied_folder_and_another_in_its_place_are_noticed(tmp_path: Path):
    with Workdir(tmp_path / "run") as workdir:
        workdir.check()
        (workdir.path / "config.json").write_text("{}")
        workdir.check()
        (workdir.path / "config.json").unlink()
        with pytest.raises(InputError, match=r"config\.json has gone"):
            workdir.check()
        (workdir.path / "config.json").write_text("{}")
        workdir.check()
        workdir.path.rename(tmp_path / "moved")
        workdir.path.mkdir()
        with pytest.raises(InputError, match="has gone"):
            workdir.check()
        (workdir.path / "config.json").write_text('{"of": "another"}')
        with pytest.raises(InputError, match="run has gone"):
            workdir.check()


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path: Path):
    left = [
        ".config.json.ab12_xyz",
        ".wandb.json.abcdefgh",
        ".reference_train.npz.abcdefgh",
        ".adapter_3.safetensors.a1b2c3d4",
    ]
    mine = [".config.json", ".config.json.backup1.json", ".notes.abcdefgh", "config.json.ab12_xyz"]
    for name in left + mine:
        (tmp_path / name).write_text("")
    with Workdir(tmp_path):
        assert sorted(os.listdir(tmp_path)) == sorted(mine)


def test_a_folder_that_stays_empty_is_removed_and_one_that_was_there_is_not(tmp_path: Path):
    with Workdir(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()
    assert os.listdir(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with Workdir(tmp_path / "mine"):
        pass
    assert os.listdir(tmp_path) == ["mine"]
