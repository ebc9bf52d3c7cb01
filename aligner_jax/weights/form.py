"""The form of a base: the functions that detect and read one kind of base files. `base.FORMS` lists all forms."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.data.tokenizer_files import load_tokenizer
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.weights.leaves import Finish, Shardings
from aligner_jax.weights.source import Checkpoint


class Load(Protocol):
    """Loads the weights of a base; see `assemble.assemble` for the arguments."""

    def __call__(
        self, path: Path, dtype: str = "float32", *, shardings: Shardings = None, finish: Finish = None
    ) -> tuple[LlamaConfig, Params]: ...


@dataclasses.dataclass(frozen=True)
class Form:
    """One kind of base files. Its functions take the file or folder, and raise InputError if it cannot be read.

    Attributes:
      description: name for messages, with its article: "a .gguf file".
      detect: returns True for a file or folder of this form. It looks at names only.
      config: returns the configuration, without loading the weights.
      load: loads the configuration and the weights.
      open: opens the files without loading the weights; None if the stored arrays are leaves of `Params` already.
      vocabulary: returns the path for `load_tokenizer`, or None if there is no vocabulary.
      begin: returns the tokenizer and a `load` that reuses the file's parsed header; None if the two share nothing.
      hint: returns an error message for a file or folder that is nearly of this form, else None.
    """

    description: str
    detect: Callable[[Path], bool]
    config: Callable[[Path], LlamaConfig]
    load: Load
    open: Callable[[Path], Checkpoint] | None
    vocabulary: Callable[[Path], Path | None] = lambda path: path
    begin: Callable[[Path], tuple[Tokenizer | None, Load]] | None = None
    hint: Callable[[Path], str | None] = lambda path: None

    def tokenizer(self, path: Path) -> Tokenizer | None:
        """Loads the tokenizer of the base at `path`. Returns None if it has none."""
        vocabulary = self.vocabulary(path)
        return None if vocabulary is None else load_tokenizer(vocabulary)
