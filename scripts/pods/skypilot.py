"""Prints a SkyPilot task that runs a command on all hosts of a TPU slice, for `sky jobs launch`.

python -m scripts.pods.skypilot --name=alpaca --topology=v5e:4x4 --spot --bucket=my-bucket:/mount \
    -- python -m aligner_jax.train --config=configs/llama7b_alpaca.py --config.base.path=/mount/llama-2-7b \
    --config.data.path=/mount/alpaca_data.json --workdir=/mount/run >alpaca.yaml
sky jobs launch --name=alpaca alpaca.yaml
"""

import shlex
from collections.abc import Sequence
from typing import Any

from scripts.pods import flags
from scripts.pods.flags import Job
from scripts.pods.slices import Mistake
from scripts.pods.write_yaml import write_yaml

SETUP = """\
set -e
# The image's Python may be older; uv brings one without root.
if ! python3.12 -c 'import ensurepip, venv' 2>/dev/null; then
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  python3 -m uv python install --quiet 3.12
  export PYTHON="$(python3 -m uv python find --managed-python 3.12)"
fi
bash -c 'set -euo pipefail; source scripts/lib/environment.sh'
"""
NOT_OFFERED = ("tpu7x",)


def main(arguments: Sequence[str]) -> str:
    """Returns the YAML for the arguments of the command line. Raises `Mistake`."""
    made = flags.parser("skypilot", "Prints a task for SkyPilot (pip install 'skypilot[gcp]'); it syncs this checkout.")
    made.add_argument("--infra", default="gcp", help="where: gcp, gcp/REGION or gcp/REGION/ZONE (default: gcp)")
    job = flags.parse(made, arguments)
    if job.num_slices > 1:
        raise Mistake(f"--slices={job.num_slices}: SkyPilot makes one slice; scripts.pods.jobset joins several")
    if job.slice.generation in NOT_OFFERED:
        raise Mistake(f"--topology={job.slice.topology}: SkyPilot has no such slices; use scripts.pods.jobset")
    head = (
        f"# {job.slice.topology}, {job.slice.chips} chips; setup and run are run on each of its hosts\n"
        f"# sky jobs launch --name={job.name} FILE      begins it again when the slice is taken away\n"
        f"# sky jobs logs --name={job.name}; sky jobs cancel --name={job.name}\n"
    )
    return write_yaml(task(job), head)


def task(job: Job) -> dict[str, Any]:
    """Returns the task."""
    return {
        "name": job.name,
        "resources": {
            "infra": job.flags.infra,
            "accelerators": f"tpu-{job.slice.accelerator_type}",
            "accelerator_args": {"tpu_vm": True, "runtime_version": job.slice.runtime},
            "use_spot": job.spot,
            "job_recovery": {
                # A slice that is taken away always comes back; this is for a run that ended by itself.
                "max_restarts_on_errors": 0,
                "recover_on_exit_codes": [code for code in flags.RESTART_ON if code != 75],
            },
        },
        "workdir": ".",
        "file_mounts": {
            mount.path: {"source": f"gs://{mount.name}", "store": "gcs", "mode": "MOUNT"} for mount in job.mounts
        },
        "envs": {"PYTHONUNBUFFERED": "1"},
        "setup": SETUP,
        "run": f"set -e\nsource .venv/bin/activate\n{shlex.join(job.command)}\n",
    }


if __name__ == "__main__":
    flags.run(main)
