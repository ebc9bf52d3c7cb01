"""Writes the sample workdirs of this version into a folder: training after step 3 of 6, and the adapters at the end.

PYTHONPATH=.:tests/support python tests/goldens/make/workdirs.py FOLDER
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from sample_runs import settings_of, write_inputs
from whole_runs import run


def write_sample(kind: str, folder: Path) -> None:
    """Trains, and writes KIND/ as it was after step 3 and KIND.safetensors at the end of the run."""
    run(settings_of(kind), Path("runs") / kind)
    workdir = folder / kind
    for path in (Path("runs") / kind).iterdir():
        if path.name in ("config.json", "inputs.json") or path.suffix == ".npz":
            workdir.mkdir(exist_ok=True)
            shutil.copy(path, workdir)
    lines = (Path("runs") / kind / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 3))
    shutil.copytree(Path("runs") / kind / "checkpoints" / "3", workdir / "checkpoints" / "3")
    shutil.copy(Path("runs") / kind / "adapter.safetensors", folder / f"{kind}.safetensors")
    _forget_place(workdir / "checkpoints" / "3")


def _forget_place(checkpoint: Path) -> None:
    """Replaces the absolute paths that Orbax records, and the checksums of those files."""
    checksums = json.loads((checkpoint / "checksums.json").read_text())
    for path in checkpoint.rglob("commit_success.txt"):
        path.write_text(path.read_text().replace(f"{Path.cwd()}/", ""))
        name = str(path.relative_to(checkpoint))
        if name in checksums:
            checksums[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (checkpoint / "checksums.json").write_text(json.dumps(checksums, indent=1))


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        write_inputs(Path(place))
        for kind in ("sft", "dpo"):
            write_sample(kind, folder)


if __name__ == "__main__":
    main()
