"""Prints the commands by which XPK runs a command on all hosts of one or more TPU slices of its cluster.

python -m scripts.pods.xpk --name=alpaca --topology=v5e:4x4 --cluster=CLUSTER --zone=us-west4-a --project=PROJECT \
    --image=IMAGE --bucket=my-bucket:/mount -- python -m aligner_jax.train --config=configs/llama7b_alpaca.py \
    --config.base.path=/mount/llama-2-7b --config.data.path=/mount/alpaca_data.json --workdir=/mount/run
"""

import shlex
from collections.abc import Sequence

from scripts.pods import flags
from scripts.pods.jobset import BUCKET_OPTIONS, escaped
from scripts.pods.slices import Mistake

# XPK begins a workload again after 42 and after 127 and above by itself.
ALWAYS_RESTARTED = 127
# Part of the names of its pods.
REPLICATED_JOB = "slice-job"


def main(arguments: Sequence[str]) -> str:
    """Returns shell lines for the arguments of the command line. Raises `Mistake`."""
    made = flags.parser("xpk", "Prints the lines for XPK (pip install xpk), which makes a JobSet of its own.")
    flags.add_image_flags(made)
    made.add_argument("--cluster", required=True, help="a cluster that xpk made or adapted")
    made.add_argument("--zone", required=True)
    made.add_argument("--project", required=True)
    job = flags.parse(made, arguments)
    if job.slice.chips_per_host == 8:
        raise Mistake("--chips_per_host=8: XPK makes slices of hosts with 4 chips")
    if job.slice.topology in ("v5e:1x1", "v5e:2x2"):
        raise Mistake(f"--topology={job.slice.topology}: XPK's slices of v5e have 8 chips and more")
    where = [f"--cluster={job.flags.cluster}", f"--zone={job.flags.zone}", f"--project={job.flags.project}"]
    lines = []
    for number, mount in enumerate(job.mounts):
        storage = f"{job.name}-{number}" if number else job.name
        attach = ["xpk", "storage", "attach", storage, *where, "--type=gcsfuse", f"--bucket={mount.name}"]
        attach += [f"--mount-point={mount.path}", "--readonly=false", "--auto-mount=true", "--size=1"]
        attach += [f"--mount-options={BUCKET_OPTIONS}"]
        lines += ["# once for a cluster: the bucket as a folder of every pod", _line(attach)]
    codes = ",".join(str(code) for code in flags.RESTART_ON if code < ALWAYS_RESTARTED)
    create = ["xpk", "workload", "create", f"--workload={job.name}", *where]
    create += [f"--tpu-type={job.slice.accelerator_type}", f"--num-slices={job.num_slices}"]
    create += [f"--docker-image={job.flags.image}", f"--termination-grace-period-seconds={job.flags.grace}"]
    create += [f"--max-restarts={job.flags.restarts}", f"--restart-on-exit-codes={codes}"]
    if job.spot:
        create += ["--spot"]
    if job.num_slices > 1:
        create += [f"--env=FIRST_HOSTS={flags.first_hosts(job, REPLICATED_JOB)}"]
    create += ["--env=PYTHONUNBUFFERED=1", f"--command={command(job.command)}"]
    lines += ["# the run", _line(create)]
    return "\n".join(lines) + "\n"


def command(words: Sequence[str]) -> str:
    """Returns the shell line that XPK runs in each pod, in the image's folder.

    Raises:
      Mistake: a word has several lines, for which the YAML of XPK has no place.
    """
    if any("\n" in word for word in words):
        raise Mistake("XPK takes no command with line breaks in it; scripts.pods.jobset does")
    # XPK sends the signal of a preemption to this process alone. Its YAML goes through Kubernetes' expansion too.
    return escaped(f"exec {shlex.join(['bash', 'scripts/pods/worker.sh', *words])}")


def _line(words: Sequence[str]) -> str:
    """Returns a shell command with one flag a line."""
    flat = [shlex.quote(word) for word in words]
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return " \\\n    ".join([" ".join(flat[:first]), *flat[first:]])


if __name__ == "__main__":
    flags.run(main)
