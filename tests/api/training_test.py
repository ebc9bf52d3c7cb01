"""Training from Python: the record of a run, its resumption, and mistakes and interrupts as exceptions."""

import json
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from whole_runs import config_file, run

import aligner_jax as aj
from aligner_jax.tasks import loop


@pytest.fixture
def settings(tiny_run: dict) -> dict:
    tiny_run["data"]["heldout_rows"] = 3
    tiny_run["adapter"]["num_tokens"] = 1
    return tiny_run


def same(a: aj.Adapter, b: aj.Adapter) -> bool:
    return all(np.array_equal(a.trainable[name], b.trainable[name]) for name in a.trainable)


def steps_of(run: aj.TrainedRun) -> list[int]:
    """Returns the steps of the lines of training; a finished run has a line of its report too."""
    return [line["step"] for line in run.metrics if "loss" in line]


def test_the_function_trains_what_the_command_trains_and_returns_all_that_is_on_disk(settings, tmp_path, capsys):
    adapter, _ = run(settings, tmp_path / "command")
    trained = aj.train(ConfigDict(settings), tmp_path / "run")
    assert isinstance(trained, aj.TrainedRun)
    assert same(trained.adapter, adapter)
    assert same(trained.adapter, aj.load_adapter(trained.path, base=trained.base))
    assert trained.workdir == tmp_path / "run"
    assert trained.base_path == settings["base"]["path"]
    lines = (trained.workdir / "metrics.jsonl").read_text().splitlines()
    assert trained.metrics == [json.loads(line) for line in lines]
    assert trained.report == json.loads((trained.workdir / "report.json").read_text())
    assert "step 8/8" in capsys.readouterr().out
    assert repr(trained).startswith("TrainedRun(aligner(")
    assert len(repr(trained)) < 300


def test_a_finished_run_is_given_back_and_a_longer_one_goes_on(settings, tmp_path, capsys):
    whole = aj.train({**settings, "steps": 8}, tmp_path / "whole", quiet=True)
    aj.train({**settings, "steps": 5}, str(tmp_path / "run"), quiet=True)
    assert capsys.readouterr().out == ""
    resumed = aj.train({**settings, "steps": 8}, tmp_path / "run")
    assert "resuming after step 5 of 8" in capsys.readouterr().out
    assert same(whole.adapter, resumed.adapter)
    again = aj.train({**settings, "steps": 8}, tmp_path / "run", quiet=True)
    assert same(again.adapter, resumed.adapter)
    assert steps_of(again) == list(range(1, 9))


def test_a_files_run_has_the_commands_folder(settings, tmp_path, monkeypatch):
    file = config_file({**settings, "steps": 1}, tmp_path)
    monkeypatch.chdir(tmp_path)
    trained = aj.train(file, quiet=True)
    assert trained.workdir == Path("runs/config")
    assert (tmp_path / "runs/config/adapter.safetensors").is_file()


def test_a_run_without_heldout_data_has_no_report_and_may_run_in_a_thread(settings, tmp_path):
    del settings["data"]["heldout_rows"]
    found, before = [], signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: found.append(aj.train({**settings, "steps": 2}, tmp_path / "run")))
    thread.start()
    thread.join()
    assert found[0].report is None
    assert signal.getsignal(signal.SIGINT) is before


def test_a_sweeps_run_has_no_single_file(settings, tmp_path):
    trained = aj.train({**settings, "sweep": {"lr": (0.01, 0.02)}, "steps": 2}, tmp_path / "run", quiet=True)
    assert sorted(path.name for path in trained.workdir.glob("*.safetensors")) == [
        "adapter_0.safetensors", "adapter_1.safetensors",
    ]  # fmt: skip
    with pytest.raises(aj.InputError, match="a sweep writes adapter_0"):
        trained.path  # noqa: B018


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, r"^config\.steps is 0"),
        ({"stepps": 1}, r"config\.stepps"),
        ({"base": {"path": "nowhere"}}, "no base model at nowhere"),
    ],
)
def test_a_mistake_is_an_input_error_and_leaves_nothing(settings, tmp_path, change, sentence):
    with pytest.raises(aj.InputError, match=sentence):
        aj.train({**settings, **change}, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_dict_needs_a_folder_and_a_folder_is_no_url(settings):
    with pytest.raises(aj.InputError, match="workdir=…"):
        aj.train(settings)
    with pytest.raises(aj.InputError, match="workdir=…"):
        aj.train(settings, "")
    with pytest.raises(aj.InputError, match="workdir=gs://a/b"):
        aj.train(settings, "gs://a/b")


def _interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, times: int = 1) -> None:
    """Sends SIGINT to this process when a step's batch is checked."""
    calls, check = [], loop.check

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return check(*arguments)

    monkeypatch.setattr(loop, "check", interrupting)


def test_an_interrupt_saves_the_step_says_so_and_the_same_call_goes_on(settings, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    whole = aj.train(settings, tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patched:
        _interrupt_at(patched, 4)
        with pytest.raises(KeyboardInterrupt) as ended:
            aj.train(settings, tmp_path / "run", quiet=True)
    assert str(ended.value) == "stopped by SIGINT after step 4 of 8, which is saved; the same call goes on there"
    assert signal.getsignal(signal.SIGINT) is before
    assert same(aj.train(settings, tmp_path / "run", quiet=True).adapter, whole.adapter)


def test_a_second_interrupt_ends_the_call_and_not_the_process(settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        _interrupt_at(patched, 5, times=2)
        with pytest.raises(KeyboardInterrupt, match="at once; the same call goes on from the last checkpoint"):
            aj.train(settings, tmp_path / "run", quiet=True)
    assert steps_of(aj.train(settings, tmp_path / "run", quiet=True)) == list(range(1, 9))
