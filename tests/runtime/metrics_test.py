import json
import os
import re
import subprocess
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from aligner_jax.errors import InputError
from aligner_jax.runtime import metrics
from aligner_jax.runtime.history import read_metrics
from aligner_jax.runtime.metrics import MetricsWriter


def lines(workdir):
    """Returns the lines of metrics.jsonl without their times."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("time", "seconds")} for line in found]


def events(workdir):
    """Returns (step, name, value) of every scalar, and (step, "restart") of every restart, in the order of writing."""
    found = []
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            if event.session_log.status == SessionLog.START:
                found.append((event.step, "restart"))
    return found


def write(workdir, *steps, resume_step=0):
    with MetricsWriter(workdir, resume_step=resume_step) as writer:
        for step in steps:
            writer.write(step, loss=step / 4)


def test_metrics_are_lines_of_json_and_points_in_tensorboard(tmp_path):
    with MetricsWriter(tmp_path / "new" / "run", resume_step=0) as writer:
        writer.write(10, loss=1.5, learning_rate=0.25)
        # Lines are written at once, not when the writer is closed.
        assert lines(tmp_path / "new" / "run") == [{"step": 10, "loss": 1.5, "learning_rate": 0.25}]
        writer.write(20, heldout_loss=2.0)
        assert events(tmp_path / "new" / "run")[-1] == (20, "heldout_loss", 2.0)
    assert lines(tmp_path / "new" / "run")[1:] == [{"step": 20, "heldout_loss": 2.0}]
    assert events(tmp_path / "new" / "run") == [
        (10, "loss", 1.5), (10, "learning_rate", 0.25), (20, "heldout_loss", 2.0)
    ]  # fmt: skip


def test_lines_have_the_time_and_the_seconds_of_the_run_which_go_on_when_it_resumes(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(metrics.time, "time", lambda: 1.7e9 + now[0])
    for resume_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with MetricsWriter(tmp_path, resume_step=resume_step) as writer:
            for step in steps:
                now[0] += 10
                writer.write(step, loss=1.0)
        # Time in which nothing ran does not count.
        now[0] += 500
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["seconds"] for line in found] == [10, 20, 30, 40]
    assert [line["time"] - 1.7e9 for line in found] == [1010, 1020, 1540, 1550]


def test_lines_of_earlier_releases_without_times_are_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    write(tmp_path, 2, resume_step=1)
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5}]
    assert read_metrics(tmp_path / "metrics.jsonl")[1]["seconds"] < 60


def test_the_writer_knows_the_metrics_of_the_last_step(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, loss=1.0)
        writer.write(1, heldout_loss=1.0)
        assert writer.holds(1, "loss")
        assert writer.holds(1, "heldout_loss")
        writer.write(2, loss=1.0)
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        assert writer.holds(2, "loss")
        assert not writer.holds(2, "heldout_loss")
        assert not writer.holds(1, "heldout_loss")


def test_what_is_not_a_number_is_null(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        writer.write(1, loss=float("nan"), grad_norm=float("inf"))
    assert lines(tmp_path) == [{"step": 1, "loss": None, "grad_norm": None}]


def test_resuming_drops_later_steps_and_a_line_cut_short(tmp_path):
    write(tmp_path, 1, 2, 3, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    write(tmp_path, 3, resume_step=2)
    assert lines(tmp_path) == [{"step": 1, "loss": 0.25}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.75}]
    assert len(events(tmp_path)) == 6
    assert (3, "restart") in events(tmp_path)
    assert not [name for name in os.listdir(tmp_path) if not name.startswith(("metrics.jsonl", "events.out"))]


def test_a_run_that_begins_anew_has_its_own_metrics_only(tmp_path):
    write(tmp_path, 1, 2)
    write(tmp_path, 1)
    assert lines(tmp_path) == [{"step": 1, "loss": 0.25}]


@pytest.mark.parametrize("line", ["step 2", '{"loss": 1}', "[]", '{"step": 2, "seconds": "now"}'])
def test_a_strange_line_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(InputError, match=r"/metrics\.jsonl:2 is not a line of metrics"):
        MetricsWriter(tmp_path, resume_step=3)
    assert line in (tmp_path / "metrics.jsonl").read_text()


WRITE_BEYOND_LIMIT = """
import resource, signal, sys
from aligner_jax.errors import InputError
from aligner_jax.runtime.metrics import MetricsWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with MetricsWriter(sys.argv[1], resume_step=0) as writer:
        for step in range(1000):
            writer.write(step, **{sys.argv[2]: 1.0})
except InputError as error:
    print(error)
"""


# A long name fills the event file first, a short one metrics.jsonl.
@pytest.mark.parametrize("name", ["l", "a" * 300])
def test_a_full_disk_is_one_sentence_and_no_wait(tmp_path, name):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITE_BEYOND_LIMIT, tmp_path, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (f"metrics cannot be written in {tmp_path}: File too large\n", "")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=rf"^metrics cannot be written in {re.escape(str(tmp_path))}/file: (Not a dir|File e)"
    ):
        MetricsWriter(tmp_path / "file", resume_step=0)
