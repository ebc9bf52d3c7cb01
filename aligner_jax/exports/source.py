"""A base that is read from its files part by part, with the files of its tokenizer, in any form."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.data.tokenizer_files import tokenizer_files
from aligner_jax.files.content import is_folder
from aligner_jax.model.config import LlamaConfig
from aligner_jax.weights.assemble import Parts, open_parts
from aligner_jax.weights.base import Base, form_of, load_base, locate
from aligner_jax.weights.fingerprint import fingerprint_of_parts
from aligner_jax.weights.form import Form
from aligner_jax.weights.orbax import OrbaxReader
from aligner_jax.weights.source import Checkpoint


@dataclasses.dataclass(frozen=True)
class StoredBase:
    """A base whose weights stay in its files; a `FingerprintedBase`.

    Attributes:
      name: path or hub name, as the user gave it.
      path: local file or folder.
      form: form of the files.
      config: configuration of the base.
      stored_dtype: dtype that holds every weight exactly: the stored one if all tensors have it, else "float32".
      open_parts: maps a dtype to a function that reads parts of the leaves; see `assemble.open_parts`.
    """

    name: str
    path: Path
    form: Form
    config: LlamaConfig
    stored_dtype: str
    open_parts: Callable[[str], Parts]

    @property
    def fingerprint(self) -> str:
        """Fingerprint that adapters record. The first access reads all weights, a layer of a leaf at a time."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of_parts(self.config, self.open_parts(self.stored_dtype))

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if the base has none. Raises InputError if its files are damaged."""
        return self.form.tokenizer(self.path)

    def tokenizer_files(self) -> dict[str, bytes]:
        """Returns the contents, by name, of the files that the tokenizer and the special token ids are read from."""
        vocabulary = self.form.vocabulary(self.path)
        if vocabulary is None or (self.tokenizer is None and not is_folder(vocabulary)):
            return {}
        return tokenizer_files(vocabulary)


def open_stored(name: str) -> StoredBase:
    """Opens the files of a base without loading its weights.

    Raises:
      InputError: there is no base of that name, or its files cannot be read; see `base.load_base`.
    """
    path = locate(name)
    form = form_of(path)
    if form.open is None:
        reader = OrbaxReader(path)
        return StoredBase(name, path, form, reader.config, reader.stored_dtype, reader.parts)
    checkpoint = form.open(path)
    parts = functools.partial(open_parts, checkpoint)
    return StoredBase(name, path, form, checkpoint.config, _stored_dtype(checkpoint), parts)


def load_whole(stored: StoredBase) -> Base:
    """Loads a stored base as a whole, in a dtype that holds its weights exactly. Raises InputError as `load_base`."""
    # float16 is no dtype to compute in here.
    return load_base(stored.name, "float32" if stored.stored_dtype == "float16" else stored.stored_dtype)


def _stored_dtype(checkpoint: Checkpoint) -> str:
    encodings = {source.encoding for source in checkpoint.sources}
    # float16 is no dtype to train in, so `Checkpoint.stored_dtype` does not have it, but other engines load it.
    return "float16" if encodings == {"F16"} else checkpoint.stored_dtype
