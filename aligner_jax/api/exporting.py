"""Export from Python: `aj.export`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aligner_jax.api.adapters import AdapterLike, adapter_path, as_list
from aligner_jax.api.training import TrainedRun
from aligner_jax.errors import InputError

if TYPE_CHECKING:
    from aligner_jax.exports.request import Target

ExportTo = Literal["adapter", "hf", "gguf", "orbax", "peft"]


def export(
    adapter: AdapterLike | Sequence[AdapterLike],
    out: str | Path,
    *,
    to: ExportTo = "adapter",
    base: str | Path | None = None,
    strength: float | None = None,
    dtype: str | None = None,
    bias: "Target | None" = None,
    nearest: str | Path | None = None,
    base_model: str | None = None,
    quiet: bool = False,
) -> Path:
    """Writes adapters for other engines or for a hub, as `python -m aligner_jax.export` does.

    ```python
    aj.export(run, "out/hf", to="hf")
    ```

    Args:
      adapter: a finished run, an adapter's path or an adapter in memory; or several, which apply in their order.
      out: folder to write, new or empty; it is complete or not there at all.
      to: "hf", "gguf" and "orbax" fold the adapters into the base; "peft" and "adapter" write them alone.
      base: path of the base, whose files are read a layer at a time; default is the run's. Only "adapter" needs none.
      strength: factor on what every adapter adds; default 1.
      dtype: dtype of written weights; default is that of the base.
      bias: "o" or "v": projection whose bias holds a prefix of one token; default "o".
      nearest: file of held-out examples, for an adapter of several prefix tokens: writes the bias that is closest to it
        on them.
      base_model: hub name of the base, for the model card and for PEFT's configuration.
      quiet: True prints nothing.

    Returns:
      The folder.

    Raises:
      InputError: base or adapter cannot be read or do not fit, the adapter cannot be written in this form, or `out` is
        a folder with other things in it.
    """
    from aligner_jax.api.process import in_users_process
    from aligner_jax.exports.forms import EXPORT_FORMS
    from aligner_jax.exports.request import ExportRequest
    from aligner_jax.exports.run import export as run_export
    from aligner_jax.runtime.files import place

    if to not in (forms := ["adapter", *EXPORT_FORMS]):
        raise InputError(f"to is {to!r}, but should be one of {', '.join(forms)}")
    adapters = as_list(adapter)
    if not adapters:
        raise InputError("there is no adapter to export")
    if base is None and to != "adapter" and isinstance(adapters[0], TrainedRun):
        base = adapters[0].base_path
    if base is not None and not isinstance(base, str | Path):
        raise InputError(
            f"the base is of type {type(base).__name__}, but an export reads the base's files: give their path"
        )
    with tempfile.TemporaryDirectory() as scratch, in_users_process(quiet=quiet):
        paths = [adapter_path(each, Path(scratch) / str(i)) for i, each in enumerate(adapters)]
        request = ExportRequest(
            adapters=tuple(paths), to=to, out=place(str(out), "out"), base=None if base is None else str(base),
            strength=strength, dtype=dtype, bias=bias, nearest=None if nearest is None else True,
            data=None if nearest is None else str(nearest), base_model=base_model,
        )  # fmt: skip
        return run_export(request, (lambda sentence: None) if quiet else print)
