"""A kind of file that `scripts.damage.fuzz_readers` damages: honest samples, mutations, and the reader under test."""

import hashlib
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

type Files = Mapping[str, bytes]
"""Content by file name, with "/" for folders: what is written into an empty folder before the reader is called."""


class Kind(NamedTuple):
    """One kind of input.

    Attributes:
      name: of the kind, as given to `--kind`.
      samples: returns honest inputs. Made once, without torch, of small random or fixed numbers.
      mutate: returns a damaged copy of a sample; every choice is drawn from the generator that it is given.
      read: reads the input in a folder with the project's own public or internal reader and returns a text that tells
        apart all results that differ (a digest of every number, id or string that was read). Raises `InputError` where
        it refuses.
      may_differ: returns True if the format cannot show the difference of a sample and its damaged copy, so that a
        reader may accept it with another result: the bytes of a weight in a format without checksums, or a value of a
        setting that is as valid as the old one.
    """

    name: str
    samples: Callable[[], list[Files]]
    mutate: Callable[[random.Random, Files], Files]
    read: Callable[[Path], str]
    may_differ: Callable[[Files, Files], bool]


def digest(*values: object) -> str:
    """Returns a text that tells apart arrays, texts and numbers that differ; for the `read` of a kind."""
    sha256 = hashlib.sha256()
    for value in values:
        numbers = getattr(value, "tobytes", None)
        sha256.update(numbers() if numbers else repr(value).encode(errors="surrogatepass"))
        sha256.update(b"\0")
    return sha256.hexdigest()
