"""scripts/lib/tpu_slice.sh: slices that are made, awaited, preempted and made again."""

from pathlib import Path

import pytest
from fake_pod import LINE, NEW, SLICE, Pod, needs_tools, sentence

pytestmark = needs_tools


def test_a_slice_is_made_set_up_and_used(pod: Pod):
    pod.states("tpu-vm", "NONE", "READY")
    result = pod.run(*NEW, "--create", "--project=mine", "--with-create=--network=a net", *LINE)
    assert result.returncode == 0, result.stderr
    place = ["--zone=us-west4-a", "--project=mine"]
    assert pod.calls("create") == [
        ["tpu-vm", "create", "pod", "--version=v2-alpha-tpuv5-lite", *place, "--accelerator-type=v5litepod-16",
         "--network=a net"]
    ]  # fmt: skip
    assert [call[:-1] for call in pod.calls("ssh")] == [
        ["tpu-vm", "ssh", "pod", *place, f"--worker={workers}"] for workers in ("all", "all", "0", "all")
    ]
    for worker in (0, 1):
        assert pod.ran(worker) == [[str(pod.fake / f"worker-{worker}" / "aligner_jax"), "-m", "train"]]
    assert result.stdout == "output of worker 0\n"
    assert "deletes it: gcloud compute tpus tpu-vm delete pod" in result.stderr.splitlines()[-1]
    assert "+ gcloud compute tpus tpu-vm create pod --version=v2-alpha-tpuv5-lite" in result.stderr


def test_a_queued_spot_slice_is_waited_for(pod: Pod):
    states = ("WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "no network", "PROVISIONING", "ACTIVE")
    pod.states("queued-resources", "NONE", *states)
    pod.states("tpu-vm", "NONE", "READY")
    result = pod.run(*NEW, "--queued", "--spot", "--delete", *LINE)
    assert result.returncode == 0, result.stderr
    assert pod.calls("create", "delete") == [
        ["queued-resources", "create", "pod", "--node-id=pod", "--runtime-version=v2-alpha-tpuv5-lite",
         "--zone=us-west4-a", "--accelerator-type=v5litepod-16", "--spot"],
        ["queued-resources", "delete", "pod", "--zone=us-west4-a", "--force", "--quiet"],
    ]  # fmt: skip
    told = [line.partition(" pod is ")[2] for line in result.stderr.splitlines() if " pod is " in line]
    assert told == ["WAITING_FOR_RESOURCES", "out of sight", "PROVISIONING", "ACTIVE", "READY"]
    assert pod.calls()[-1][1] == "delete"


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (
            ("WAITING_FOR_RESOURCES", "FAILED"),
            "the request for pod failed; why: gcloud compute tpus queued-resources de",
        ),
        (("PROVISIONING", "SUSPENDING"), "pod was taken away before it was ready"),
        (("WAITING_FOR_RESOURCES",), "pod is still WAITING_FOR_RESOURCES after 0 minutes"),
    ],
)
def test_a_request_that_comes_to_nothing_is_one_sentence(pod: Pod, states, told):
    pod.states("queued-resources", "NONE", *states)
    result = pod.run(*NEW, "--queued", "--wait=0" if len(states) == 1 else "--wait=9", *LINE)
    assert (result.returncode, pod.calls("ssh")) == (1, [])
    assert sentence(result).startswith(f"error: {told}")
    assert "queued-resources delete pod" in result.stderr.splitlines()[-1]
    assert pod.verbs() == ["queued-resources create"]

    pod.states("queued-resources", "NONE", *states)
    pod.run(*NEW, "--queued", "--delete", "--wait=0", *LINE)
    assert pod.verbs()[1:] == ["queued-resources create", "queued-resources delete"]


def test_what_is_left_of_an_earlier_request_is_deleted_first(pod: Pod):
    pod.states("queued-resources", "SUSPENDING", "SUSPENDED", "ACTIVE")
    pod.states("tpu-vm", "NONE", "NONE", "READY")
    assert pod.run(*NEW, "--queued", *LINE).returncode == 0
    assert pod.verbs() == ["queued-resources delete", "queued-resources create"]


def test_a_request_that_is_there_is_waited_for(pod: Pod):
    pod.states("queued-resources", "PROVISIONING", "ACTIVE")
    pod.states("tpu-vm", "NONE", "READY")
    assert pod.run(*NEW, "--queued", *LINE).returncode == 0
    assert pod.verbs() == []


@pytest.mark.parametrize(
    ("type", "version"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
        ("tpu7x-8", "v2-alpha-tpu7-ubuntu2404"),
    ],
)
def test_each_type_has_its_runtime(pod: Pod, type, version):
    result = pod.run(*SLICE, f"--type={type}", "--create", "--dry-run", *LINE)
    made = f"--version={version} --zone=us-west4-a --accelerator-type={type}\n"
    assert result.stdout.startswith(f"gcloud compute tpus tpu-vm create pod {made}")
    named = pod.run(*SLICE, f"--type={type}", "--create", "--version=my own", "--dry-run", *LINE)
    assert "'--version=my own'" in named.stdout


# In order: the slice is ready; worker 0 is lost; the slice is preempted, twice; the new one is ready.
TAKEN = ("READY", "PREEMPTED", "PREEMPTED", "PREEMPTED", "READY")


def test_a_slice_that_is_taken_away_is_one_sentence(pod: Pod):
    pod.states("tpu-vm", *TAKEN)
    (pod.fake / "failures").write_text("-\n-\n255")
    result = pod.run(*NEW, *LINE)
    assert result.returncode == 1
    assert sentence(result) == "error: pod is PREEMPTED; --resume-on-preemption makes it again and goes on"
    assert pod.verbs() == []


@pytest.mark.parametrize("queued", [False, True])
def test_a_slice_that_is_taken_away_is_made_again_and_the_command_runs_again(pod: Pod, queued: bool):
    pod.states("tpu-vm", *TAKEN)
    pod.states("queued-resources", "ACTIVE", "SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE")
    (pod.fake / "failures").write_text("-\n-\n255")
    flags = ["--spot", "--resume-on-preemption", "--workdir=/shared/run", *["--queued"] * queued]
    result = pod.run(*NEW, *flags, *LINE)
    assert result.returncode == 0, result.stderr
    assert "pod is PREEMPTED; it is made again" in result.stderr
    kind = "queued-resources" if queued else "tpu-vm"
    assert pod.verbs() == [f"{kind} delete", f"{kind} create"]
    assert "--spot" in pod.calls("create")[0]
    for worker in (0, 1):
        assert [call[1:] for call in pod.ran(worker)] == [["-m", "train", "--workdir=/shared/run"]] * 2


def test_a_command_that_fails_because_its_slice_is_taken_away_runs_again(pod: Pod, tmp_path: Path):
    pod.states("tpu-vm", "READY")
    # gcloud reports the preemption only after a while.
    later = f"[ -e '{tmp_path}/later' ] || printf 'PREEMPTED\\nPREEMPTED\\nREADY' >'{pod.fake}/states/tpu-vm'"
    pod.program("sleep", f"{later}; : >'{tmp_path}/later'")
    fails_once = f"[ -e '{tmp_path}/once'$WORKER ] || {{ : >'{tmp_path}/once'$WORKER; exit 134; }}"
    result = pod.run(*NEW, "--resume-on-preemption", "--workdir=/shared/run", *LINE, ACT=fails_once)
    assert result.returncode == 0, result.stderr
    assert pod.verbs() == ["tpu-vm delete", "tpu-vm create"]


def test_a_command_that_fails_by_itself_is_not_run_again(ready: Pod):
    result = ready.run(*NEW, "--resume-on-preemption", "--workdir=/shared/run", *LINE, ACT="exit 2")
    assert (result.returncode, len(ready.ran(0)), ready.verbs()) == (2, 1, [])


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("NONE", "there is no slice pod that is ready (NONE): --create makes one"),
        ("PREEMPTED", "there is no slice pod that is ready (PREEMPTED): --create makes one"),
        ("you are not logged in", "the state of pod cannot be read (gcloud's reason is above)"),
    ],
)
def test_a_slice_that_cannot_be_used_is_one_sentence(pod: Pod, state, told):
    pod.states("tpu-vm", state)
    result = pod.run(*SLICE, *LINE)
    assert (result.returncode, sentence(result), pod.verbs()) == (1, f"error: {told}", [])
    assert ("ERROR: you are not logged in" in result.stderr) == (" " in state)


def test_a_slice_that_cannot_be_made_is_one_sentence_and_nothing_is_deleted(pod: Pod):
    result = pod.run(*NEW, "--create", "--delete", *LINE, REFUSES="create")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        "error: the slice could not be made (gcloud's reason is above); if"
    )
    assert pod.verbs() == ["tpu-vm create"]

    pod.states("tpu-vm", "PREEMPTED")
    again = pod.run(*NEW, "--create", "--delete", *LINE, REFUSES="create")
    assert again.stderr.splitlines()[-1].startswith("error: the slice could not be made")
    assert pod.verbs()[1:] == ["tpu-vm delete", "tpu-vm create"]
