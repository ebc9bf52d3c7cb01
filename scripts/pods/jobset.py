"""Prints a JobSet that runs a command on all hosts of one or more TPU slices of a GKE cluster.

python -m scripts.pods.jobset --name=alpaca --topology=v5e:4x4 --image=IMAGE --bucket=my-bucket:/mount \
    --service_account=trainer -- python -m aligner_jax.train --config=configs/llama7b_alpaca.py \
    --config.base.path=/mount/llama-2-7b --config.data.path=/mount/alpaca_data.json --workdir=/mount/run \
    | kubectl apply -f -
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.pods import flags
from scripts.pods.flags import Job, Mount
from scripts.pods.write_yaml import write_yaml

CONTAINER = "train"
SLICE = "slice"
SCRIPT = Path(__file__).with_name("worker.sh")
# A workdir is written by one host and read by all, so what the others know of its files must not be old. Checkpoints
# are folders that get their names when they are whole; buckets without folders refuse to rename those of more files.
BUCKET_OPTIONS = (
    "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0,file-system:rename-dir-limit:200000"
)


def main(arguments: Sequence[str]) -> str:
    """Returns the YAML for the arguments of the command line. Raises `slices.Mistake`."""
    made = flags.parser("jobset", "Prints a JobSet for GKE, to be piped into kubectl apply -f -.")
    flags.add_image_flags(made)
    made.add_argument("--claim", action="append", default=[], metavar="NAME:/PATH", help="mounts such a volume claim")
    made.add_argument("--namespace", help="namespace of the JobSet (default: kubectl's)")
    made.add_argument("--service_account", help="Kubernetes service account; buckets need one that may use them")
    made.add_argument("--reservation", help="name of a reservation whose nodes are taken")
    made.add_argument("--queue", help="LocalQueue of Kueue")
    job = flags.parse(made, arguments)
    size = f"{job.num_slices} × {job.slice.topology}, {job.slice.hosts} hosts of {job.slice.chips_per_host} chips each"
    head = (
        f"# {size}; nodes: {job.slice.machine_type}, --tpu-topology={job.slice.shape}\n"
        f"# begun again up to {job.flags.restarts} times; the run goes on from its last checkpoint\n"
    )
    return write_yaml(jobset(job), head)


def jobset(job: Job) -> dict[str, Any]:
    """Returns the JobSet, API version jobset.x-k8s.io/v1alpha2."""
    metadata: dict[str, Any] = {"name": job.name}
    if job.flags.namespace:
        metadata["namespace"] = job.flags.namespace
    if job.flags.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": job.flags.queue}
    if job.slice.hosts > 1:
        # One slice is one node pool: no two slices of a job share one, and no slice is spread over two.
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            # The headless service by whose names the hosts find each other.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": job.flags.restarts,
                # All pods of the last attempt are gone before the next begins: it needs their workdir and nodes.
                "restartStrategy": "BlockingRecreate",
                # A pod that ended with a status of GIVE_UP_ON would end so again.
                "rules": [
                    {"name": "giveUp", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                ],
            },
            "replicatedJobs": [
                {"name": SLICE, "replicas": job.num_slices, "template": {"spec": _job_spec(job)}},
            ],
        },
    }


def _job_spec(job: Job) -> dict[str, Any]:
    failed = {"containerName": CONTAINER, "operator": "In", "values": list(flags.GIVE_UP_ON)}
    return {
        "completionMode": "Indexed",
        "parallelism": job.slice.hosts,
        "completions": job.slice.hosts,
        # One pod that fails ends the attempt: the others cannot go on without it.
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": failed}]},
        "template": _pod(job),
    }


def _pod(job: Job) -> dict[str, Any]:
    template: dict[str, Any] = {}
    if any(mount.kind == "bucket" for mount in job.mounts):
        template["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    chips = {"google.com/tpu": str(job.slice.chips_per_host)}
    selector = {
        "cloud.google.com/gke-tpu-accelerator": job.slice.node_label,
        "cloud.google.com/gke-tpu-topology": job.slice.shape,
    }
    spec: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": job.flags.grace}
    if job.flags.service_account:
        spec["serviceAccountName"] = job.flags.service_account
    if job.flags.reservation:
        selector["cloud.google.com/reservation-name"] = job.flags.reservation
    if job.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        spec["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        ]
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": job.flags.image,
        "command": ["bash", "-c", escaped(SCRIPT.read_text()), "worker.sh"],
        "args": [escaped(word) for word in job.command],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        # worker.sh raises the limit of locked memory.
        "securityContext": {"capabilities": {"add": ["SYS_RESOURCE"]}},
        "resources": {"requests": dict(chips), "limits": chips},
    }
    if job.num_slices > 1:
        container["env"].append({"name": "FIRST_HOSTS", "value": flags.first_hosts(job, SLICE)})
    spec["nodeSelector"] = selector
    spec["containers"] = [container]
    if job.mounts:
        container["volumeMounts"] = [
            {"name": f"mount-{i}", "mountPath": mount.path} for i, mount in enumerate(job.mounts)
        ]
        spec["volumes"] = [{"name": f"mount-{i}", **_volume(mount)} for i, mount in enumerate(job.mounts)]
    return {**template, "spec": spec}


def _volume(mount: Mount) -> dict[str, Any]:
    if mount.kind == "claim":
        return {"persistentVolumeClaim": {"claimName": mount.name}}
    attributes = {"bucketName": mount.name, "mountOptions": BUCKET_OPTIONS}
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "readOnly": False, "volumeAttributes": attributes}}


def escaped(text: str) -> str:
    """Returns text that Kubernetes leaves as it was: it expands $(NAME) in commands, and $$ is a $."""
    return text.replace("$", "$$")


if __name__ == "__main__":
    flags.run(main)
