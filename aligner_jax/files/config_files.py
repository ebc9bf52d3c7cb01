"""Finds config files and data by the names that they have in the repository, wherever the package is installed."""

import difflib
from pathlib import Path, PurePath

from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file, is_folder

_PACKAGE = Path(__file__).resolve().parent.parent
_NAME = _PACKAGE.name
_CONFIGS = "configs"
_EXAMPLES = "quickstart, llama7b_alpaca or eval/quick"
_LONGEST = 100
"""Limit on the length of a name that is compared, since the search takes quadratic time."""


def configs_folder() -> Path:
    """Returns the folder of the config files: a wheel holds them in the package, a repository beside it."""
    inside = _PACKAGE / _CONFIGS
    return inside if is_folder(inside) else _PACKAGE.parent / _CONFIGS


def config_names() -> list[str]:
    """Returns the names of the package's config files, such as "quickstart" and "eval/quick"."""
    folder = configs_folder()
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.py"))


def find_config(path: str | Path) -> Path:
    """Returns the config file at `path`, or else the package's one of that name.

    Args:
      path: a file; or, where there is none, "aligner_jax/configs/NAME.py", "configs/NAME.py" or "NAME", in which NAME
        is one of `config_names`. The ending may be left out of each.

    Raises:
      InputError: there is no such file, or it is a folder.
    """
    if is_file(path):
        return Path(path)
    parts = PurePath(path).parts
    for folder in (_NAME, _CONFIGS):
        parts = parts[1:] if parts[:1] == (folder,) else parts
    name, names = PurePath(*parts).as_posix().removesuffix(".py"), config_names()
    if name in names:
        return configs_folder() / f"{name}.py"
    near = difflib.get_close_matches(name[:_LONGEST], names, n=1)
    meant = f"did you mean {near[0]}?" if near else f"give a file, or a name that the package has, such as {_EXAMPLES}"
    problem = "is a folder" if is_folder(path) else "does not exist"
    raise InputError(f"config file {path} {problem}; {meant}")


def find_packaged(path: str | Path) -> Path:
    """Returns `path`, or else the package's file of that name: "aligner_jax/data/quickstart/train.jsonl".

    Raises:
      InputError: `path` is not a valid path.
    """
    given = Path(path)
    if given.parts[:1] == (_NAME,) and ".." not in given.parts and not is_file(given):
        packaged = _PACKAGE.joinpath(*given.parts[1:])
        if is_file(packaged):
            return packaged
    return given
