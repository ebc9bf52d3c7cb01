"""aligner_jax: align a large language model with a few thousand numbers (Aligner, arXiv 2312.05503), on JAX and TPUs.

```python
import aligner_jax as aj

base = aj.load_base("path/to/model")
adapter = aj.init_adapter("aligner", base.config, num_tokens=1)
logits_btv = aj.apply(base.params, adapter, tokens_bt, config=base.config)
```
"""

import sys as _sys

from aligner_jax.runtime import starting as _starting

# Comes first: the imports below take seconds, and Ctrl-C may be pressed meanwhile.
_starting.begin()

try:
    from aligner_jax.api.configs import load_config
    from aligner_jax.api.evaluation import evaluate
    from aligner_jax.api.exporting import export
    from aligner_jax.api.package import Package as _Package
    from aligner_jax.api.training import TrainedRun, train
    from aligner_jax.decoding.sampler import sample
    from aligner_jax.errors import InputError
    from aligner_jax.model.config import LlamaConfig, llama_config
    from aligner_jax.peft import Adapter, apply, init_adapter
    from aligner_jax.peft.artifact import load_adapter, save_adapter
    from aligner_jax.peft.combine import combine
    from aligner_jax.weights.base import Base, load_base
finally:
    # An import may fail in a process that goes on, which must not be left without garbage collection.
    _starting.imported()

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

# The commands train.py, evaluate.py, export.py and combine.py do not replace the functions of their names.
_sys.modules[__name__].__class__ = _Package
