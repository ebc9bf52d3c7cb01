"""The class of the package's module, in which public functions and commands may share a name."""

import types
from typing import Any


class Package(types.ModuleType):
    """A package whose public functions are not replaced by its modules of the same names.

    Importing `aligner_jax.train`, the command's file, sets the attribute `train` of the package to that module. Here
    the attribute stays the function, in every order of imports; `from aligner_jax.train import train` works too.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        is_own_module = isinstance(value, types.ModuleType) and value.__name__ == f"{self.__name__}.{name}"
        if is_own_module and name in self.__dict__.get("__all__", ()):
            return
        super().__setattr__(name, value)
