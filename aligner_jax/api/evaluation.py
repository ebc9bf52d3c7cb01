"""Evaluation from Python: `aj.evaluate`."""

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from aligner_jax.api.adapters import AdapterLike, adapter_path
from aligner_jax.api.configs import Config, as_config
from aligner_jax.errors import InputError

if TYPE_CHECKING:
    from aligner_jax.weights.base import Base

IN_MEMORY = "the base in memory"


def evaluate(
    config: Config,
    *,
    base: "Base | str | Path | None" = None,
    adapter: AdapterLike | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluates a base, with or without an adapter, as `python -m aligner_jax.evaluate` does.

    ```python
    results = aj.evaluate("configs/eval/quick.py", base=run.base, adapter=run)
    results["scores"]
    ```

    Args:
      config: config of the evaluation: a ConfigDict, a dict or a config file's name.
      base: a loaded base or its path, in place of `config.base`.
      adapter: a finished run, an adapter's path, or an adapter in memory, which records no prompt format; None
        evaluates the base alone.
      out: folder of the results, from which a call that was cut short goes on; None keeps no files.
      quiet: True prints nothing.

    Returns:
      The content of results.json: "evaluation", "made_from" and "scores".

    Raises:
      InputError: the config, the base, the adapter, the data or the folder cannot be used.
    """
    from aligner_jax.api.process import in_users_process
    from aligner_jax.evals.interface import parse_evaluate_config
    from aligner_jax.evals.run import RESULTS
    from aligner_jax.evals.run import evaluate as run_evaluation
    from aligner_jax.files.json_text import read_object
    from aligner_jax.runtime import distributed
    from aligner_jax.runtime.files import place
    from aligner_jax.weights.base import Base

    values = as_config(config)
    loaded = base if isinstance(base, Base) else None
    if base is not None:
        if not isinstance(base, Base | str | Path):
            raise InputError(f"the base is of type {type(base).__name__}, but should be a Base or a path")
        section = values.get("base")
        # Fields beside the path, such as the dtype, are not those of a base in memory.
        more = section if isinstance(section, dict | ConfigDict) and loaded is None else {}
        values["base"] = {**more, "path": str(base) if loaded is None else IN_MEMORY}
    parsed = parse_evaluate_config(values)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = scratch / "results" if out is None else place(str(out), "out")
        stack.enter_context(in_users_process(quiet=quiet))
        path = None if adapter is None else adapter_path(adapter, scratch)
        run_evaluation(parsed, path, folder, distributed.console(quiet=quiet), base=loaded)
        return read_object(folder / RESULTS)
