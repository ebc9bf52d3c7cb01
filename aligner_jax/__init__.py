"""aligner_jax: align a large language model with a few thousand numbers (Aligner, arXiv 2312.05503), on JAX and TPUs.

```python
import aligner_jax as aj

base = aj.load_base("path/to/model")
adapter = aj.init_adapter("aligner", base.config, num_tokens=1)
logits_btv = aj.apply(base.params, adapter, tokens_bt, config=base.config)
```

JAX is imported when a name is first used, not with the package.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from aligner_jax.runtime import attached as _attached
from aligner_jax.runtime import starting as _starting

# Comes first: the imports of a command take seconds, and Ctrl-C may be pressed meanwhile.
if _command := _starting.command():
    _starting.begin()
    from aligner_jax.usage import early as _early

    if _early.answer(*_command):
        _starting.say_loading(_command[0])
    else:
        _starting.imported()

if TYPE_CHECKING:
    from aligner_jax.api.configs import load_config
    from aligner_jax.api.evaluation import evaluate
    from aligner_jax.api.exporting import export
    from aligner_jax.api.training import TrainedRun, train
    from aligner_jax.decoding.sampler import sample
    from aligner_jax.errors import InputError
    from aligner_jax.model.config import LlamaConfig, llama_config
    from aligner_jax.peft import Adapter, apply, init_adapter
    from aligner_jax.peft.artifact import load_adapter, save_adapter
    from aligner_jax.peft.combine import combine
    from aligner_jax.weights.base import Base, load_base

_attached.avoid_libtpu()

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Base",
    "InputError",
    "LlamaConfig",
    "TrainedRun",
    "__version__",
    "apply",
    "combine",
    "evaluate",
    "export",
    "init_adapter",
    "llama_config",
    "load_adapter",
    "load_base",
    "load_config",
    "sample",
    "save_adapter",
    "train",
]

_MODULES = {
    "Adapter": "peft",
    "Base": "weights.base",
    "InputError": "errors",
    "LlamaConfig": "model.config",
    "TrainedRun": "api.training",
    "apply": "peft",
    "combine": "peft.combine",
    "evaluate": "api.evaluation",
    "export": "api.exporting",
    "init_adapter": "peft",
    "llama_config": "model.config",
    "load_adapter": "peft.artifact",
    "load_base": "weights.base",
    "load_config": "api.configs",
    "sample": "decoding.sampler",
    "save_adapter": "peft.artifact",
    "train": "api.training",
}
"""The module of every public name, from which it is imported when it is first used."""


class _Package(types.ModuleType):
    """The package, whose public names are imported when they are first used."""

    def __getattr__(self, name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with _starting.importing():
            value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import of a submodule sets the package's attribute of its name; a function of that name stays.
        if not (name in _MODULES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_MODULES})


sys.modules[__name__].__class__ = _Package
