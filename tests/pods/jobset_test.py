"""scripts/pods/jobset.py: the YAML has the JobSet API's fields, and its container runs the command as it was given."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from aligner_jax.planning.topology import topology_devices
from scripts.pods import jobset

COMMAND = ("python", "-m", "aligner_jax.train", "--config=configs/llama7b_alpaca.py", "--workdir=/mount/run")
ODD = ("--a=b c", 'it\'s "so"; $HOME $(HOME) $$ `id` \\ 50 % * ~ #', "", " ", "two\nlines\n", "ünïcode", "yes", "1:2")

# Names of fields by their place, from the API's Go types: JobSet in kubernetes-sigs/jobset (api/jobset/v1alpha2), Job
# and Pod in Kubernetes' batch/v1 and core/v1. A name that is not here would be refused or, worse, ignored.
FIELDS: dict[str, Any] = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name", "namespace", "labels", "annotations"},
    "spec": {"network", "failurePolicy", "successPolicy", "replicatedJobs", "suspend", "ttlSecondsAfterFinished"},
    "spec.network": {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"},
    "spec.failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "spec.failurePolicy.rules": {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"},
    "spec.replicatedJobs": {"name", "groupName", "replicas", "template", "dependsOn"},
    "JOB": {"metadata", "spec"},
    "JOB.spec": {"completionMode", "parallelism", "completions", "backoffLimit", "podFailurePolicy", "template"},
    "JOB.spec.podFailurePolicy": {"rules"},
    "JOB.spec.podFailurePolicy.rules": {"action", "onExitCodes", "onPodConditions"},
    "JOB.spec.podFailurePolicy.rules.onExitCodes": {"containerName", "operator", "values"},
    "POD": {"metadata", "spec"},
    "POD.metadata": {"annotations", "labels"},
    "POD.spec": {
        "restartPolicy", "terminationGracePeriodSeconds", "serviceAccountName", "nodeSelector", "tolerations",
        "containers", "volumes",
    },
    "POD.spec.tolerations": {"key", "operator", "value", "effect"},
    "POD.spec.containers": {
        "name", "image", "command", "args", "env", "securityContext", "resources", "volumeMounts",
    },
    "POD.spec.containers.env": {"name", "value"},
    "POD.spec.containers.securityContext": {"capabilities"},
    "POD.spec.containers.securityContext.capabilities": {"add"},
    "POD.spec.containers.resources": {"requests", "limits"},
    "POD.spec.containers.volumeMounts": {"name", "mountPath", "readOnly"},
    "POD.spec.volumes": {"name", "csi", "persistentVolumeClaim"},
    "POD.spec.volumes.csi": {"driver", "readOnly", "volumeAttributes"},
    "POD.spec.volumes.persistentVolumeClaim": {"claimName"},
}  # fmt: skip
# Maps whose keys are names and no fields.
FREE = ("annotations", "labels", "nodeSelector", "requests", "limits", "volumeAttributes")


def render(*flags: str, topology: str = "v5e:4x4", command: tuple[str, ...] = COMMAND) -> dict[str, Any]:
    mounts = () if any(flag.startswith(("--bucket", "--claim")) for flag in flags) else ("--bucket=bucket:/mount",)
    text = jobset.main(["--name=run", f"--topology={topology}", "--image=image", *mounts, *flags, "--", *command])
    return yaml.safe_load(text)


def job_of(document: dict[str, Any]) -> dict[str, Any]:
    return document["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    return job_of(document)["template"]["spec"]


def check_fields(value: Any, place: str = "") -> None:
    """Checks every field's name by its place."""
    if isinstance(value, list):
        for item in value:
            check_fields(item, place)
    elif isinstance(value, dict) and not place.endswith(FREE):
        assert set(value) <= FIELDS[place], place
        for name, inner in value.items():
            deeper = f"{place}.{name}".lstrip(".")
            deeper = {"spec.replicatedJobs.template": "JOB", "JOB.spec.template": "POD"}.get(deeper, deeper)
            check_fields(inner, deeper)


ALL = (
    "--slices=2", "--spot", "--service_account=trainer", "--reservation=mine", "--namespace=team", "--queue=tpu",
    "--bucket=gs://bucket:/mount", "--claim=disk:/disk", "--restarts=7", "--grace=60",
)  # fmt: skip


def test_every_field_is_one_of_the_api():
    check_fields(render())
    check_fields(render(*ALL, command=(*COMMAND, "--config.mesh.slices=2")))


def test_a_name_that_the_api_lacks_is_seen():
    document = render()
    job_of(document)["paralelism"] = 4
    with pytest.raises(AssertionError, match=r"JOB\.spec"):
        check_fields(document)


def test_the_head_is_that_of_a_jobset():
    document = render()
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert document["metadata"]["name"] == "run"
    assert document["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}


@pytest.mark.parametrize(
    "topology", ["v5e:2x2", "v5e:2x4", "v5e:4x4", "v4:2x2x4", "v5p:2x4x4", "v6e:4x8", "tpu7x:2x2x2"]
)
def test_pods_and_chips_are_the_planners(topology: str):
    document = render(topology=topology)
    job, [container] = job_of(document), pod_of(document)["containers"]
    devices = topology_devices(topology)
    hosts = {device.process_index for device in devices}
    chips = {tuple(device.coords) for device in devices}
    assert job["parallelism"] == job["completions"] == len(hosts)
    assert job["completionMode"] == "Indexed"
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"] == {"google.com/tpu": str(len(chips) // len(hosts))}
    assert pod_of(document)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology.partition(":")[2]


@pytest.mark.parametrize(
    ("topology", "label"),
    [
        ("v4:2x2x2", "tpu-v4-podslice"),
        ("v5e:2x4", "tpu-v5-lite-podslice"),
        ("v5p:2x2x2", "tpu-v5p-slice"),
        ("v6e:4x4", "tpu-v6e-slice"),
        ("tpu7x:2x2x1", "tpu7x"),
    ],
)
def test_nodes_are_chosen_by_gkes_labels(topology: str, label: str):
    selector = pod_of(render(topology=topology))["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == label


def test_slices_are_replicas_of_one_job():
    document = render("--slices=3", command=(*COMMAND, "--config.mesh.slices=3"))
    [replicated] = document["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 3
    placed = document["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert placed == "cloud.google.com/gke-nodepool"
    assert "annotations" not in render(topology="v5e:2x2")["metadata"]


def test_slices_wait_for_each_other():
    document = render("--slices=2", command=(*COMMAND, "--config.mesh.slices=2"))
    env = {variable["name"]: variable["value"] for variable in pod_of(document)["containers"][0]["env"]}
    # <jobset>-<replicated job>-<job's index>-<pod's index>.<subdomain, which is the jobset's name>
    assert env["FIRST_HOSTS"] == "run-slice-0-0.run,run-slice-1-0.run"
    assert [variable["name"] for variable in pod_of(render())["containers"][0]["env"]] == ["PYTHONUNBUFFERED"]


def test_a_preempted_run_is_begun_again_and_a_mistake_is_not():
    document = render("--restarts=7")
    policy, job = document["spec"]["failurePolicy"], job_of(document)
    assert (policy["maxRestarts"], policy["restartStrategy"]) == (7, "BlockingRecreate")
    [rule] = policy["rules"]
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # A pod failure policy needs pods that are not restarted, and names the container whose status it looks at.
    assert (job["backoffLimit"], pod_of(document)["restartPolicy"]) == (0, "Never")
    [failed] = job["podFailurePolicy"]["rules"]
    assert failed["action"] == "FailJob"
    assert failed["onExitCodes"]["containerName"] == pod_of(document)["containers"][0]["name"]
    given_up = set(failed["onExitCodes"]["values"])
    assert failed["onExitCodes"]["operator"] == "In"
    # The statuses of docs/tpu.md.
    page = (Path(__file__).parents[2] / "docs" / "tpu.md").read_text()
    resumed = re.search(r"Restart on ([\d, and]+)\.", page)
    assert given_up == {1, 2}
    assert not given_up & {int(number) for number in re.findall(r"\d+", resumed[1])}


def test_spot_capacity_is_asked_for():
    pod = pod_of(render("--spot"))
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    assert "tolerations" not in pod_of(render())


def test_buckets_and_claims_are_mounted_where_the_command_looks():
    document = render("--bucket=gs://bucket:/mount/", "--claim=disk:/disk")
    template = job_of(document)["template"]
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    bucket, claim = pod_of(document)["volumes"]
    assert bucket["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert bucket["csi"]["volumeAttributes"]["bucketName"] == "bucket"
    assert claim["persistentVolumeClaim"] == {"claimName": "disk"}
    mounts = pod_of(document)["containers"][0]["volumeMounts"]
    assert [(mount["name"], mount["mountPath"]) for mount in mounts] == [
        (bucket["name"], "/mount"),
        (claim["name"], "/disk"),
    ]
    assert "metadata" not in job_of(render("--claim=disk:/mount"))["template"]


def expanded(text: str, variables: dict[str, str]) -> str:
    """Returns a word of a container's command as Kubernetes passes it on: $(NAME) is a variable, and $$ is a $."""
    return re.sub(
        r"\$\$|\$\((\w+)\)", lambda match: "$" if match[0] == "$$" else variables.get(match[1], match[0]), text
    )


def words_of(document: dict[str, Any]) -> list[str]:
    container = pod_of(document)["containers"][0]
    words = container["command"] + container["args"]
    assert all(isinstance(word, str) for word in words)
    return [expanded(word, {"HOME": "wrong"}) for word in words]


def test_the_script_in_the_container_is_the_one_of_the_repository():
    words = words_of(render())
    script = Path(jobset.__file__).with_name("worker.sh").read_text()
    assert words[:4] == ["bash", "-c", script, "worker.sh"]
    subprocess.run(["bash", "-n"], input=words[2], text=True, check=True)


def test_the_container_runs_the_command_as_it_was_given(tmp_path: Path):
    printing = ("printf", "<%s>", *ODD)
    words = words_of(render(command=printing))
    result = subprocess.run(words, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    assert result.stdout == "".join(f"<{word}>" for word in ODD)


def test_the_names_of_pods_are_no_longer_than_dns_allows():
    name = "a" * 40
    text = jobset.main([f"--name={name}", "--topology=v5p:16x16x16", "--image=image", "--", "true"])
    [job] = yaml.safe_load(text)["spec"]["replicatedJobs"]
    hosts = job["template"]["spec"]["parallelism"]
    assert len(f"{name}-{job['name']}-{999}-{hosts - 1}-abcde") <= 63
