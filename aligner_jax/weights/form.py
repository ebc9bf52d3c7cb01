"""Form: the record of one way that a base's files come in. `base.FORMS` has one of each."""

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
    """Loads the weights of a base; see `base.load_base` for the arguments."""

    def __call__(
        self, path: Path, dtype: str = "float32", *, shardings: Shardings = None, finish: Finish = None
    ) -> tuple[LlamaConfig, Params]: ...


@dataclasses.dataclass(frozen=True)
class Form:
    """One way that a base's files come in. The functions take the file or folder, and raise InputError where it is bad.

    Attributes:
      description: for messages, with its article: "a .gguf file".
      detect: returns True for a file or folder of this form, judged by names alone.
      config: reads the configuration, without the weights.
      load: loads the weights.
      open: opens the files, of which no weight is read yet; None where they are leaves of `Params` already.
      vocabulary: returns what `load_tokenizer` takes; None where there is no vocabulary.
      begin: returns the tokenizer, and a `load` that shares with it what is read of the file; None: they share nothing.
      hint: returns the sentence for a file or folder that is nearly of this form; None where it is not.
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
        """Loads the tokenizer of the base at `path`; None where it has none."""
        vocabulary = self.vocabulary(path)
        return None if vocabulary is None else load_tokenizer(vocabulary)
