"""Optional packages: tells which are missing, and the command that installs them."""

import importlib.util

_FILES = {"study": "scripts/lib/study_requirements.txt"}
"""Requirements of extras that requirements.txt leaves out."""


def pip_line(extra: str) -> str:
    """Returns the end of an error message: the command that installs the packages of an extra."""
    return f"pip install 'aligner_jax[{extra}]' (in a clone: pip install -r {_FILES.get(extra, 'requirements.txt')})"


def missing(*packages: str) -> list[str]:
    """Returns those of the importable names that are not installed. Imports none of them."""
    return [name for name in packages if _is_missing(name)]


def _is_missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ValueError:
        # sys.modules has it as None, which forbids its import.
        return True
