"""The order of training: epoch after epoch without end, each in an order of its own."""

import sys
from collections.abc import Sequence

import numpy as np


class Epochs[Item]:
    """Items of all epochs, one after the other; the order depends on the seed and the items' number alone.

    Grain's own `shuffle` takes 30 ms an item where there are few of them, and orders epoch e by seed + e, so that runs
    with neighbouring seeds repeat each other's epochs.
    """

    def __init__(self, items: Sequence[Item], seed: int):
        self._items, self._seed, self._epoch, self._order = items, seed, -1, np.arange(0)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Item:
        epoch, place = divmod(index, len(self._items))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._items))
            self._epoch = epoch
        return self._items[self._order[place]]
