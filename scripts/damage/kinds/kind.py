"""The kinds of files that `fuzz_readers` damages: undamaged samples, mutations, and the reader under test."""

import hashlib
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

type Files = Mapping[str, bytes]
"""File contents by name, with "/" for folders. They are written into an empty folder before the reader is called."""


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
      name: the kind's name, as given to `--kind`.
      samples: returns undamaged inputs, made once, without torch, of small random or fixed numbers.
      mutate: returns a damaged copy of a sample; every choice is drawn from the given generator.
      read: reads the input in a folder with the project's own public or internal reader. Returns a text that differs
        for all results that differ (a digest of every number, id or string that was read). Raises `InputError` if it
        refuses.
      may_differ: returns True if the format cannot show the difference between a sample and its damaged copy, so that
        a reader may accept the copy with another result. Examples are the bytes of a weight in a format without
        checksums, or a setting whose new value is as valid as the old one.
    """

    name: str
    samples: Callable[[], list[Files]]
    mutate: Callable[[random.Random, Files], Files]
    read: Callable[[Path], str]
    may_differ: Callable[[Files, Files], bool]


def digest(*values: object) -> str:
    """Returns a text that differs for different arrays, texts and numbers; for the `read` of a kind."""
    sha256 = hashlib.sha256()
    for value in values:
        numbers = getattr(value, "tobytes", None)
        sha256.update(numbers() if numbers else repr(value).encode(errors="surrogatepass"))
        sha256.update(b"\0")
    return sha256.hexdigest()
