"""A trace of a few steps is in the workdir, where XProf and TensorBoard look, with the step's named scopes."""

import gzip
import json
from pathlib import Path

import jax
import pytest
from whole_runs import run

from aligner_jax.errors import InputError
from aligner_jax.runtime import distributed
from aligner_jax.runtime.config import ProfileConfig
from aligner_jax.runtime.profile import Profile
from aligner_jax.runtime.workdir import Workdir


def traces(workdir: Path) -> list[Path]:
    """Returns the files where TensorBoard's profile plugin looks for them."""
    return sorted((workdir / "profile").glob("plugins/profile/*/*.xplane.pb"))


def traced_steps(trace: Path) -> list[int]:
    """Returns the steps that a trace has annotations of."""
    content = gzip.decompress(trace.with_name(trace.name.replace(".xplane.pb", ".trace.json.gz")).read_bytes())
    events = json.loads(content)["traceEvents"]
    return sorted(int(event["args"]["step_num"]) for event in events if event.get("name") == "train")


def test_a_trace_holds_its_steps_and_their_named_scopes(tiny_run: dict, tmp_path: Path):
    _, screen = run({**tiny_run, "profile": {"steps": 2, "after": 3}}, tmp_path / "run")
    assert f"profile: {tmp_path}/run/profile, steps 4 to 5" in screen.replace("\n", "")
    (trace,) = traces(tmp_path / "run")
    assert traced_steps(trace) == [4, 5]
    content = trace.read_bytes()
    for scope in (b"attention", b"mlp", b"rope", b"unembed"):
        assert scope in content
    lines = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 9))


def test_tracing_changes_no_bit_and_none_is_taken_by_default(tiny_run: dict, tmp_path: Path):
    run(tiny_run, tmp_path / "plain")
    assert not (tmp_path / "plain" / "profile").exists()
    run({**tiny_run, "profile": {"steps": 1, "after": 0}}, tmp_path / "traced")
    assert traced_steps(*traces(tmp_path / "traced")) == [1]
    plain, traced = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("plain", "traced"))
    assert plain == traced


def test_a_run_that_goes_on_traces_its_own_steps_also_in_an_older_workdir(tiny_run: dict, tmp_path: Path):
    run({**tiny_run, "steps": 3}, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    old = json.loads(path.read_text())
    del old["profile"]
    path.write_text(json.dumps(old))
    # More steps than the run has.
    run({**tiny_run, "profile": {"steps": 100, "after": 2}}, tmp_path / "run")
    assert traced_steps(*traces(tmp_path / "run")) == [6, 7, 8]


def test_where_no_step_is_left_to_trace_the_run_says_so(tiny_run: dict, tmp_path: Path):
    _, screen = run({**tiny_run, "steps": 2, "profile": {"steps": 1, "after": 2}}, tmp_path / "run")
    assert "profile: no step to trace, since config.profile.after is 2 of 2" in screen
    assert not (tmp_path / "run" / "profile").exists()


def test_a_run_that_ends_in_its_trace_writes_it(tiny_run: dict, tmp_path: Path):
    tiny_run |= {"optim": {"lr": 1e30}, "nonfinite": {"max_skipped": 2}, "steps": 20}
    with pytest.raises(InputError, match="not finite"):
        # Step 1 compiles, and a trace of that takes seconds.
        run({**tiny_run, "profile": {"steps": 20, "after": 1}}, tmp_path / "run")
    assert traced_steps(*traces(tmp_path / "run"))[0] == 2


def test_a_trace_that_cannot_be_written_is_one_sentence(tiny_run: dict, tmp_path: Path):
    run({**tiny_run, "steps": 2}, tmp_path / "run")
    (tmp_path / "run" / "profile").write_text("")
    with pytest.raises(InputError, match=r"run/profile: File exists$"):
        run({**tiny_run, "profile": {"steps": 1, "after": 0}}, tmp_path / "run")


def test_a_second_trace_in_a_process_is_refused_as_such_and_the_first_goes_on(tmp_path: Path, console):
    profile = Profile(ProfileConfig(steps=1, after=0), Workdir(tmp_path), console, first=0, last=9)
    with jax.profiler.trace(tmp_path / "other"):
        with pytest.raises(InputError) as caught, profile:
            profile.turn(1)
        assert not traces(tmp_path)
    assert str(caught.value).startswith("config.profile.steps is 1, but this process is already taking another trace")
    assert list((tmp_path / "other").rglob("*.xplane.pb"))


def test_each_of_several_processes_has_a_folder_of_its_own(tmp_path: Path, monkeypatch, console):
    workdir = Workdir(tmp_path)
    assert Profile(ProfileConfig(), workdir, console, first=0, last=9).folder == tmp_path / "profile"
    monkeypatch.setattr(distributed, "is_alone", lambda: False)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert Profile(ProfileConfig(), workdir, console, first=0, last=9).folder == tmp_path / "profile" / "process_1"
