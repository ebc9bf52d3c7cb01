"""Sets the variables of the interpreters that run notebooks."""

import os
from pathlib import Path

import matplotlib
import matplotlib.font_manager  # writes the list of fonts that kernels read
import pytest

_FOLDERS = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")


def set_kernel_variables(monkeypatch: pytest.MonkeyPatch, folder: Path, pythonpath: Path | None) -> None:
    """Sets variables until the end of a test.

    Args:
      monkeypatch: the test's.
      folder: folder of the test, for the kernel's own files.
      pythonpath: folder to import packages from, beside the interpreter's own; None leaves it out.
    """
    for name in _FOLDERS:
        monkeypatch.setenv(name, str(folder / name.lower()))
    # A kernel that makes its own list of fonts takes seconds, and says so on stderr.
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_configdir())
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    if pythonpath is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", str(pythonpath))
