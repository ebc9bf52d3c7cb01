"""A gcloud that records its calls and simulates a slice: states from files, workers as folders of this machine.

$FAKE holds calls.jsonl (the recorded calls), states/KIND (one state per line; each is returned once, the last one
forever), failures (exit statuses of the next ssh calls, one per line; "-" lets a call through) and the workers' home
folders.
"""

import json
import os
import pathlib
import subprocess
import sys

FAKE = pathlib.Path(os.environ["FAKE"])
WORKERS = {"all": (0, 1), "0": (0,)}


def pop(path: pathlib.Path, *, keep_last: bool) -> str:
    first, *rest = path.read_text().split("\n") if path.exists() else [""]
    if rest or not keep_last:
        path.write_text("\n".join(rest))
    return first


def describe(kind: str) -> int:
    state = pop(FAKE / "states" / kind, keep_last=True) or "NONE"
    if state.isupper():
        if state == "NONE":
            print(f"ERROR: (gcloud.compute.tpus.{kind}.describe) NOT_FOUND: Resource was not found.", file=sys.stderr)
            return 1
        print(state)
        return 0
    print(f"ERROR: {state}", file=sys.stderr)
    return 1


def ssh(flags: dict[str, str]) -> int:
    failure = pop(FAKE / "failures", keep_last=False)
    if failure not in ("", "-"):
        return int(failure)
    processes = []
    for worker in WORKERS[flags["--worker"]]:
        home = FAKE / f"worker-{worker}"
        home.mkdir(exist_ok=True)
        environment = {**os.environ, "HOME": str(home), "WORKER": str(worker)}
        processes.append(subprocess.Popen(["bash", "-c", flags["--command"]], env=environment))
    return next(filter(None, [process.wait() for process in processes]), 0)


def wait_for_commands() -> None:
    for lock in FAKE.glob("worker-*/aligner_jax_run/lock"):
        subprocess.run(["flock", lock, "true"], check=True)


def main() -> int:
    arguments = sys.argv[1:]
    with (FAKE / "calls.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    _, _, kind, verb, *rest = arguments
    flags = {name: value for name, _, value in (flag.partition("=") for flag in rest[1:])}
    if verb == "describe":
        return describe(kind)
    if verb == "ssh":
        status = ssh(flags)
        if "TWICE" not in os.environ:
            return status
        # A connection may be lost at the very end, so that the request is repeated long after it was done.
        wait_for_commands()
        return ssh(flags)
    if verb == "delete":
        # The next slice has other workers, on which nothing runs yet.
        wait_for_commands()
    return int(os.environ.get("REFUSES") == verb)


sys.exit(main())
