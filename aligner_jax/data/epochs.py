"""An endless sequence of epochs, shuffled anew in each."""

import sys
from collections.abc import Sequence

import numpy as np


class Epochs[Item]:
    """Items of all epochs in sequence. The order depends only on the seed and the number of items.

    Grain's own `shuffle` takes 30 ms per item of a small dataset. It also orders epoch e by seed + e, so runs with
    neighbouring seeds repeat each other's epochs.
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
