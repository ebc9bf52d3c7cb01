"""scripts/pods/skypilot.py: the task has SkyPilot's fields, and its scripts are whole."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.pods import skypilot

COMMAND = ("python", "-m", "aligner_jax.train", "--config=configs/llama7b_alpaca.py", "--workdir=/mount/run")
ROOT = Path(__file__).parents[2]

# Fields of SkyPilot 0.14's schemas (sky/utils/schemas.py).
TASK = {"name", "resources", "workdir", "file_mounts", "envs", "setup", "run", "num_nodes"}
RESOURCES = {"infra", "accelerators", "accelerator_args", "use_spot", "job_recovery"}
STORAGE = {"name", "source", "store", "mode", "persistent"}


def render(*flags: str, topology: str = "v5e:4x4", command: tuple[str, ...] = COMMAND) -> dict[str, Any]:
    flags = ("--name=run", f"--topology={topology}", "--bucket=bucket:/mount", *flags)
    return yaml.safe_load(skypilot.main([*flags, "--", *command]))


def test_every_field_is_one_of_skypilots():
    task = render("--spot", "--infra=gcp/us-west4")
    assert set(task) <= TASK
    assert set(task["resources"]) <= RESOURCES
    assert set(task["resources"]["accelerator_args"]) <= {"runtime_version", "tpu_vm", "tpu_name"}
    assert set(task["resources"]["job_recovery"]) <= {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
    assert set(task["file_mounts"]["/mount"]) <= STORAGE


@pytest.mark.parametrize(
    ("topology", "accelerator", "runtime"),
    [
        ("v5e:4x4", "tpu-v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p:2x2x4", "tpu-v5p-32", "v2-alpha-tpuv5"),
        ("v6e:2x4", "tpu-v6e-8", "v2-alpha-tpuv6e"),
        ("v4:2x2x4", "tpu-v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_accelerators_and_runtimes_are_those_of_tpu_vms(topology: str, accelerator: str, runtime: str):
    resources = render(topology=topology)["resources"]
    assert (resources["accelerators"], resources["accelerator_args"]["runtime_version"]) == (accelerator, runtime)
    # The other script makes its slices with the same runtimes.
    assert runtime in (ROOT / "scripts" / "run_tpu_pod.sh").read_text()


def test_a_run_that_can_go_on_is_begun_again():
    resources = render("--spot")["resources"]
    assert resources["use_spot"] is True
    recovered = set(resources["job_recovery"]["recover_on_exit_codes"])
    page = (ROOT / "docs" / "tpu.md").read_text()
    assert recovered == {int(number) for number in re.findall(r"\d+", re.search(r"Restart on ([\d, and]+)\.", page)[1])}


def test_the_bucket_is_mounted_and_not_copied():
    assert render()["file_mounts"] == {"/mount": {"source": "gs://bucket", "store": "gcs", "mode": "MOUNT"}}


def test_scripts_are_whole():
    task = render()
    for name in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[name], text=True, check=True)
    # The script that it sources makes the environment.
    assert (ROOT / re.search(r"source (scripts/\S+\.sh)", task["setup"])[1]).is_file()


def test_the_command_arrives_as_it_was_given(tmp_path: Path):
    odd = ("a b", 'it\'s $HOME $(HOME) "so"', "", "two\nlines\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    script = render(command=("printf", "<%s>", *odd))["run"]
    result = subprocess.run(["bash"], input=script, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "".join(f"<{word}>" for word in odd)
