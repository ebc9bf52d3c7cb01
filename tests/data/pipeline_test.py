import collections
import copy
import itertools
import json
import threading

import numpy as np
import pytest

from aligner_jax.data.pipeline import eval_batches, fill, packing_fill, train_batches
from aligner_jax.errors import InputError

LENGTH = 32
NAMES = {"tokens_bt": np.int32, "segment_ids_bt": np.int32, "positions_bt": np.int32, "loss_mask_bt": np.bool_}


def make_documents(number, seed=0, longest=20):
    """Returns documents with distinct first tokens (from 100 on) and random masks."""
    random = np.random.default_rng(seed)
    documents = []
    for i in range(number):
        size = int(random.integers(2, longest + 1))
        tokens = np.concatenate([[100 + i], random.integers(1, 100, size - 1)]).astype(np.int32)
        documents.append({"tokens": tokens, "loss_mask": random.random(size) < 0.5})
    return documents


def unpack(batch):
    """Returns the documents of a batch in order, and checks the rows."""
    found = []
    for name, dtype in NAMES.items():
        assert getattr(batch, name).dtype == dtype
        assert getattr(batch, name).shape == batch.tokens_bt.shape
    for row in zip(*(getattr(batch, name) for name in NAMES), strict=True):
        tokens, segments, positions, mask = row
        count = segments.max()
        used = int((segments > 0).sum())
        assert (segments[:used] > 0).all(), "padding is at the end only"
        assert (np.diff(segments[:used]) >= 0).all()
        assert not tokens[used:].any()
        assert not mask[used:].any()
        assert not positions[used:].any()
        for number in range(1, count + 1):
            place = segments == number
            assert positions[place].tolist() == list(range(place.sum()))
            found.append({"tokens": tokens[place], "loss_mask": mask[place]})
    return found


def same(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a["tokens"], b["tokens"]) and np.array_equal(a["loss_mask"], b["loss_mask"])
        for a, b in zip(first, second, strict=True)
    )


def batches_equal(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in NAMES)


def make_iterator(documents, packing=True, seed=0, batch_size=4):
    return train_batches(documents, batch_size=batch_size, sequence_length=LENGTH, seed=seed, packing=packing)


@pytest.mark.parametrize("packing", [True, False])
def test_rows_hold_whole_documents(packing):
    documents = make_documents(50)
    batches = make_iterator(documents, packing)
    for _ in range(40):
        batch = next(batches)
        assert batch.tokens_bt.shape == (4, LENGTH)
        found = unpack(batch)
        assert same(found, [documents[document["tokens"][0] - 100] for document in found])
        if not packing:
            assert len(found) == 4


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("number", [1, 7, 101, 400])
def test_every_document_comes_once_an_epoch(packing, number):
    """Rows are packed in windows, so a document is never more than two windows ahead of or behind the others."""
    documents = make_documents(number)
    batches = make_iterator(documents, packing)
    counts = collections.Counter()
    epochs = 12 if number < 400 else 4
    while sum(counts.values()) < epochs * number:
        counts.update(document["tokens"][0] for document in unpack(next(batches)))
    values = [counts[100 + i] for i in range(number)]
    slack = 2 if packing else 1
    assert max(values) - min(values) <= slack
    assert abs(np.mean(values) - epochs) <= 1 + 16 / number


@pytest.mark.parametrize("packing", [True, False])
def test_epochs_are_whole_and_in_new_orders(packing):
    """Documents are as long as a row, and an epoch fills whole windows. So epochs are whole after packing, too."""
    number = 64
    documents = make_documents(number)
    for document in documents:
        document["tokens"] = np.resize(document["tokens"], LENGTH)
        document["loss_mask"] = np.resize(document["loss_mask"], LENGTH)
    batches = make_iterator(documents, packing)
    epochs = [[int(d["tokens"][0]) for _ in range(16) for d in unpack(next(batches))] for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [100 + i for i in range(number)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_another_seed_gives_an_unrelated_order():
    documents = make_documents(64)
    orders = {}
    for seed in range(3):
        batches = make_iterator(documents, packing=False, seed=seed)
        orders[seed] = [[int(t) for _ in range(16) for t in next(batches).tokens_bt[:, 0]] for _ in range(3)]
    epochs = [tuple(epoch) for order in orders.values() for epoch in order]
    assert len(set(epochs)) == 9
    assert batches_equal(next(make_iterator(documents, seed=2)), next(make_iterator(documents, seed=2)))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("number", [3, 40, 700])
def test_a_resumed_iterator_goes_on_bit_for_bit(packing, number):
    """Checkpoints lie within and on borders of windows (16 batches for the larger sets) and epochs, and pass JSON."""
    documents = make_documents(number)
    batches = make_iterator(documents, packing)
    states, expected = [json.dumps(batches.get_state())], []
    for _ in range(40):
        expected.append(next(batches))
        states.append(json.dumps(batches.get_state()))
    used = make_iterator(documents, packing)
    next(used)
    for step in (0, 1, 2, 15, 16, 17, 37):
        for resumed in (used, make_iterator(documents, packing)):
            resumed.set_state(json.loads(states[step]))
            assert json.dumps(resumed.get_state()) == states[step]
            for later in expected[step : step + 3]:
                assert batches_equal(next(resumed), later)


def test_reading_does_not_change_what_was_read():
    batches = make_iterator(make_documents(40))
    first = next(batches)
    before = copy.deepcopy(first)
    for _ in range(60):
        next(batches)
    assert batches_equal(first, before)


def test_no_threads_are_started():
    before = threading.active_count()
    next(make_iterator(make_documents(40)))
    assert threading.active_count() == before


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("number", [1, 4, 50])
def test_evaluation_sees_every_document_once(packing, number):
    documents = make_documents(number)
    batches = eval_batches(documents, batch_size=4, sequence_length=LENGTH, packing=packing)
    found = [unpack(batch) for batch in batches]
    names = [int(document["tokens"][0]) for batch in found for document in batch]
    assert sorted(names) == [100 + i for i in range(number)]
    assert same(sorted(itertools.chain(*found), key=lambda d: d["tokens"][0]), documents)
    assert all(batch.tokens_bt.shape == (4, LENGTH) for batch in batches)
    bounds = [(min(d["tokens"][0] for d in batch), max(d["tokens"][0] for d in batch)) for batch in found]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(bounds))
    assert [batch[0]["tokens"][0] for batch in found] == [first for first, _ in bounds]
    if not packing:
        assert names == sorted(names)


def test_packing_fills_rows():
    documents = make_documents(400)
    tokens = sum(len(document["tokens"]) for document in documents)
    packed = packing_fill(documents, sequence_length=LENGTH)
    alone = packing_fill(documents, sequence_length=LENGTH, packing=False)
    assert alone == pytest.approx(tokens / 400 / LENGTH, rel=0.05)
    assert packed > 0.9 > 0.5 > alone
    (batch,) = eval_batches(documents[:1], batch_size=2, sequence_length=LENGTH)
    assert fill(batch) == len(documents[0]["tokens"]) / (2 * LENGTH)


@pytest.mark.parametrize("make", [lambda d: next(make_iterator(d)), lambda d: make_iterator(d, packing=False)])
def test_what_cannot_be_made_into_rows(make):
    with pytest.raises(InputError, match="no documents"):
        make([])
    with pytest.raises(InputError, match=f"40 tokens and a row {LENGTH}"):
        make([{"tokens": np.ones(40, np.int32), "loss_mask": np.ones(40, bool)}])
