"""Adapters of a bank in places of the device: bound once, without compiling; the least recently used is replaced."""

import dataclasses
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from adapter_files import NamedBase

from aligner_jax.decoding import held as held_module
from aligner_jax.decoding.held import HeldAdapters
from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.peft.bank import Bank, Entry
from aligner_jax.peft.row_adapters import Capacity, as_row
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.peft.together import bind
from aligner_jax.runtime import sharding

PLACES = 4


@pytest.fixture
def bank(tmp_path: Path, config: LlamaConfig, trained_adapter):
    with Bank.open(tmp_path / "bank", NamedBase(config), create=True) as opened:
        opened.register_many(Entry(f"n{i}", trained_adapter(1, key=i)) for i in range(12))
        yield opened


@pytest.fixture
def held(config: LlamaConfig, params: Params, bank: Bank) -> HeldAdapters:
    made = HeldAdapters(params, config, Capacity(), PLACES)
    made.warm_up(*bank.kinds()[0])
    return made


def test_every_place_has_the_adapter_that_was_bound_to_it(held, bank, params, config, trained_adapter):
    before = held_module._bound._cache_size()
    for i in (0, 1, 2, 3, 0, 4, 5, 0, 11):
        ((place, weight, capacity),) = [(t.place, t.weight, t.capacity) for t in held.terms([(bank.get(f"n{i}"), 0.5)])]
        alone = as_row(bind(trained_adapter(1, key=i), params, config), config, Capacity(), np.float32)
        found = jax.device_get(held.rows.constant_lbnh)[:, place]
        np.testing.assert_allclose(found, alone.constant_lbnh[:, 0], atol=1e-5)
        assert (weight, capacity) == (0.5, Capacity())
    assert (held.hits, held.misses) == (2, 7)
    assert held_module._bound._cache_size() == before


def taken(held: HeldAdapters, place: int):
    """Returns what a place has."""
    return jax.tree.map(lambda x: x[:, place], jax.device_get(held.rows))


def test_a_kind_that_was_prepared_is_bound_without_compiling(params, config, trained_adapter):
    adapter = trained_adapter(3, key=7)
    roomy = [HeldAdapters(params, config, Capacity(tokens=3), PLACES) for _ in range(2)]
    stored = StoredAdapter.of(adapter, "new")
    # In another thread, while the places are in use.
    thread = threading.Thread(target=roomy[0].prepare, args=(stored,))
    thread.start()
    roomy[0].terms([(StoredAdapter.of(trained_adapter(1, key=1), "old"), 1.0)])
    thread.join()
    before = held_module._bound._cache_size()
    for _ in range(2):
        roomy[0].terms([(dataclasses.replace(stored, key=object()), 1.0)])
    assert held_module._bound._cache_size() == before
    roomy[0].prepare(StoredAdapter.of(trained_adapter(1, key=1), "old"))
    assert len(roomy[0]._prepared) == 1
    found = [taken(each, each.terms([(stored, 1.0)])[0].place) for each in roomy]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_kind_is_prepared_for_the_mesh_of_the_places(params, config, trained_adapter, monkeypatch):
    """The mesh in context is that of a thread."""
    seen = []

    def on_every_device(rows):
        seen.append(jax.sharding.get_abstract_mesh().axis_names)
        return rows

    monkeypatch.setattr(held_module, "_on_every_device", on_every_device)
    with sharding.use(sharding.make_mesh(devices=jax.devices()[:1])):
        held = HeldAdapters(params, config, Capacity(tokens=5), PLACES)
    thread = threading.Thread(target=held.prepare, args=(StoredAdapter.of(trained_adapter(5), "new"),))
    thread.start()
    thread.join()
    assert seen == [sharding.AXES, sharding.AXES]


def test_the_least_recently_used_adapter_is_replaced(held, bank):
    for i in (0, 1, 2, 3, 0, 4):
        held.terms([(bank.get(f"n{i}"), 1.0)])
    held.hits = held.misses = 0
    for i in (0, 2, 3, 4):
        held.terms([(bank.get(f"n{i}"), 1.0)])
    assert (held.hits, held.misses) == (4, 0)
    held.terms([(bank.get("n1"), 1.0)])
    assert held.misses == 1


def test_a_replaced_adapter_is_bound_again(held, bank, trained_adapter):
    held.terms([(bank.get("n0"), 1.0)])
    bank.register("n0", trained_adapter(1, key=99))
    held.terms([(bank.get("n0"), 1.0)])
    bank.compact()
    held.terms([(bank.get("n0"), 1.0)])
    assert (held.hits, held.misses) == (1, 2)


def test_numbers_that_cannot_be_read_cost_no_place(held, bank):
    numbers = bank.path / "numbers.1"
    stored = [bank.get(f"n{i}") for i in range(12)]
    content = bytearray(numbers.read_bytes())
    for place in range(6):
        content[place * len(content) // 12] ^= 1
    numbers.write_bytes(content)
    for i in range(6):
        with pytest.raises(InputError, match="is damaged"):
            held.terms([(stored[i], 1.0)])
    for i in range(6, 12):
        held.terms([(stored[i], 1.0)])
    held.hits = 0
    held.terms([(stored[i], 1.0) for i in range(8, 12)])
    assert held.hits == PLACES
