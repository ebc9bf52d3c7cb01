"""Rows of pairs: every batch holds whole pairs, each once an epoch, in the same order after a resume."""

import collections
import itertools
import json

import numpy as np
import pytest

from aligner_jax.data.batch import arrays_of
from aligner_jax.data.pair_rows import eval_pair_batches, offsets, train_pair_batches
from aligner_jax.errors import InputError

LENGTH = 32
BATCH = 4
DTYPES = {
    "tokens_bt": np.int32,
    "segment_ids_bt": np.int32,
    "positions_bt": np.int32,
    "loss_mask_bt": np.bool_,
    "pairs_um": np.int32,
}


def make_pairs(number, seed=0, longest=14):
    """Returns pairs: chosen documents begin with 1000 and the pair's index, rejected ones with 2000 and the index."""
    random = np.random.default_rng(seed)

    def document(first):
        size = int(random.integers(2, longest + 1))
        tokens = np.concatenate([[first], random.integers(1, 100, size - 1)]).astype(np.int32)
        return {"tokens": tokens, "loss_mask": random.random(size) < 0.5}

    return [{"chosen": document(1000 + i), "rejected": document(2000 + i)} for i in range(number)]


def unpack(batch, packing):
    """Returns the pairs of a batch by index, and checks rows and indices."""
    for name, dtype in DTYPES.items():
        assert getattr(batch, name).dtype == dtype, name
    assert batch.tokens_bt.shape == (BATCH, LENGTH)
    units = BATCH if packing else BATCH // 2
    assert batch.pairs_um.shape == (units, LENGTH // 4 if packing else 1)
    rows = {name: getattr(batch, name).reshape(units, -1) for name in list(DTYPES)[:4]}
    found = []
    for unit, pairs_m in enumerate(batch.pairs_um):
        tokens, segments, positions, mask = (rows[name][unit] for name in list(DTYPES)[:4])
        there = pairs_m[pairs_m >= 0]
        assert (pairs_m[len(there) :] == -1).all(), "places without a pair are the last"
        assert segments.max() == 2 * len(there)
        assert not tokens[segments == 0].any()
        assert not mask[segments == 0].any()
        for place, number in enumerate(there):
            sides = {}
            for side, segment in (("chosen", 2 * place + 1), ("rejected", 2 * place + 2)):
                here = segments == segment
                assert positions[here].tolist() == list(range(here.sum()))
                sides[side] = {"tokens": tokens[here], "loss_mask": mask[here]}
            found.append((int(number), sides))
    return found


def is_pair(found, pair):
    return all(np.array_equal(found[side][name], pair[side][name]) for side in pair for name in pair[side])


def make_iterator(pairs, packing=True, seed=0, **options):
    return train_pair_batches(pairs, batch_size=BATCH, sequence_length=LENGTH, seed=seed, packing=packing, **options)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("number", [1, 7, 101])
def test_every_pair_comes_whole_and_once_an_epoch(packing, number):
    pairs = make_pairs(number)
    batches = make_iterator(pairs, packing)
    counts = collections.Counter()
    while sum(counts.values()) < 6 * number:
        for name, sides in unpack(next(batches), packing):
            assert is_pair(sides, pairs[name])
            counts[name] += 1
    values = [counts[i] for i in range(number)]
    assert max(values) - min(values) <= (2 if packing else 1)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("number", [3, 200])
def test_a_resumed_iterator_goes_on_bit_for_bit(packing, number):
    pairs = make_pairs(number)
    reference_t = np.random.default_rng(1).standard_normal(offsets(pairs)[-1]).astype(np.float32)
    batches = make_iterator(pairs, packing, reference_t=reference_t)
    states, expected = [json.dumps(batches.get_state())], []
    for _ in range(40):
        expected.append(next(batches))
        states.append(json.dumps(batches.get_state()))
    for step in (0, 1, 15, 16, 17, 36):
        resumed = make_iterator(pairs, packing, reference_t=reference_t)
        resumed.set_state(json.loads(states[step]))
        for later in expected[step : step + 3]:
            batch, expected_arrays = arrays_of(next(resumed)), arrays_of(later)
            assert batch.keys() == expected_arrays.keys()
            assert all(np.array_equal(batch[name], expected_arrays[name]) for name in batch)


def test_another_seed_gives_another_order():
    orders = [
        [n for _ in range(8) for n, _ in unpack(next(it), True)] for it in map(make_iterator, [make_pairs(99)] * 2)
    ]
    assert orders[0] == orders[1]
    other = make_iterator(make_pairs(99), seed=1)
    assert [n for _ in range(8) for n, _ in unpack(next(other), True)] != orders[0]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("number", [1, 2, 50])
def test_evaluation_sees_every_pair_once_and_can_be_repeated(packing, number):
    pairs = make_pairs(number)
    batches = eval_pair_batches(pairs, batch_size=BATCH, sequence_length=LENGTH, packing=packing)
    for _ in range(2):
        found = list(itertools.chain(*(unpack(batch, packing) for batch in batches)))
        assert sorted(name for name, _ in found) == list(range(number))
        assert all(is_pair(sides, pairs[name]) for name, sides in found)


@pytest.mark.parametrize("packing", [True, False])
def test_the_reference_goes_with_its_pair(packing):
    """The reference of each token is the token itself here, so that the two can be compared."""
    pairs = make_pairs(30)
    reference_t = np.concatenate([d["tokens"] for pair in pairs for d in (pair["chosen"], pair["rejected"])])
    reference_t = reference_t.astype(np.float32)
    assert offsets(pairs).tolist()[:2] == [0, len(pairs[0]["chosen"]["tokens"]) + len(pairs[0]["rejected"]["tokens"])]
    training = make_iterator(pairs, packing, reference_t=reference_t)
    options = {"batch_size": BATCH, "sequence_length": LENGTH, "packing": packing}
    evaluation = eval_pair_batches(pairs, reference_t=reference_t, **options)
    for batch in [*(next(training) for _ in range(5)), *evaluation]:
        unpack(batch, packing)
        assert batch.reference_bt.dtype == np.float32
        np.testing.assert_array_equal(batch.reference_bt, batch.tokens_bt)
    assert next(make_iterator(pairs, packing)).reference_bt is None


def test_a_row_holds_as_many_of_the_smallest_pairs_as_it_has_places_for():
    document = {"tokens": np.array([5, 6], np.int32), "loss_mask": np.array([False, True])}
    pairs = [{"chosen": document, "rejected": document}] * 100
    batch = next(make_iterator(pairs))
    assert (batch.pairs_um >= 0).all()
    assert batch.pairs_um.shape[1] == LENGTH // 4


@pytest.mark.parametrize("packing", [True, False])
def test_what_cannot_be_made_into_rows(packing):
    with pytest.raises(InputError, match="no preference pairs"):
        make_iterator([], packing)
    long = {"tokens": np.ones(20 if packing else 40, np.int32), "loss_mask": np.ones(20 if packing else 40, bool)}
    with pytest.raises(InputError, match=f"40 tokens and a row {LENGTH}"):
        make_iterator([{"chosen": long, "rejected": long}], packing)
    if not packing:
        with pytest.raises(InputError, match="5 rows cannot hold whole pairs"):
            eval_pair_batches(make_pairs(2), batch_size=5, sequence_length=LENGTH, packing=False)
