"""Parts of the decoding loop: rows enter and leave a state, and each gets the tokens it gets alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.decoding import programs
from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.sampler import continue_ids
from aligner_jax.decoding.state import Rows, State, begin, empty_state, end_rows, insert, prefill, step
from aligner_jax.model import cache as cache_module
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft import Adapter, bind, bind_rows, init_adapter
from aligner_jax.peft.rows import stack_adapters

SLOTS, NEW = 24, 6
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5, 8], [9, 7, 9, 3]]
RULES = [Sampling(), Sampling(1.0), Sampling(0.8, 5), Sampling(1.5, 0, 0.7)]
STOPS = jnp.asarray([-1], jnp.int32)

prefill_jit = jax.jit(prefill, static_argnames=("config", "slots"))
step_jit = jax.jit(step, static_argnames=("config",))


def _begun(params: Params, bound, rows: list[int], config: LlamaConfig, slots: int = 8) -> State:
    """Returns a state after prefill of these prompts; each has the key of that row of a batch."""
    tokens_bt = np.zeros((len(rows), 8), np.int32)
    for i, row in enumerate(rows):
        tokens_bt[i, : len(PROMPTS[row])] = PROMPTS[row]
    lengths_b = np.asarray([len(PROMPTS[row]) for row in rows], np.int32)
    keys_b = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.asarray(rows))
    prefilled = prefill_jit(params, bound, tokens_bt, lengths_b, config=config, slots=slots)
    return begin(prefilled, Rows.of(keys_b, [RULES[row] for row in rows]), STOPS)


@pytest.fixture(scope="module", params=["aligner", "prompt"])
def adapter(request, config: LlamaConfig, randomized) -> Adapter:
    return randomized(init_adapter(request.param, config, num_tokens=3))


@pytest.fixture(scope="module")
def alone(config: LlamaConfig, params: Params, adapter: Adapter) -> list[list[int]]:
    """Returns each prompt's new tokens by its own rule, from a batch with one rule."""
    found = []
    for row, rule in enumerate(RULES):
        steps = continue_ids(params, adapter, PROMPTS, config=config, max_new_tokens=NEW, sampling=rule)
        found.append([tokens[row] for tokens in steps])
    return found


def test_rows_inserted_at_different_times_say_what_they_say_alone(config, params, adapter, alone):
    bound = bind(adapter, params, config)
    state = empty_state(config, 3, SLOTS, jnp.float32, first_position=bound.first_position)
    # Row 1 of the state decodes two prompts, one after the other; prompts arrive at steps 0, 2 and 6.
    arrivals = {0: [(1, 0)], 2: [(0, 1), (2, 2)], 6: [(1, 3)]}
    serving: dict[int, int] = {}
    said: list[list[int]] = [[] for _ in PROMPTS]
    for time in range(2 * NEW):
        for row, prompt in arrivals.get(time, []):
            state, serving[row] = insert(state, _begun(params, bound, [prompt], config), [row]), prompt
        for row, prompt in serving.items():
            said[prompt].append(int(state.token_b[row]))
        state = step_jit(params, bound, state, STOPS, config=config)
    assert [row[:NEW] for row in said] == alone


def test_several_prompts_are_inserted_at_once(config, params, adapter, alone):
    bound = bind(adapter, params, config)
    state = empty_state(config, 4, SLOTS, jnp.float32, first_position=bound.first_position)
    state = insert(state, _begun(params, bound, [2, 0], config), [3, 1])
    said = []
    for _ in range(NEW):
        said.append(np.asarray(state.token_b)[[3, 1]].tolist())
        state = step_jit(params, bound, state, STOPS, config=config)
    assert [list(row) for row in zip(*said, strict=True)] == [alone[2], alone[0]]


def test_a_row_that_has_ended_stays_as_it_is_and_has_no_length(config: LlamaConfig, params: Params):
    bound = bind(None, params, config)
    begun = _begun(params, bound, [0, 1], config, SLOTS)
    state = end_rows(begun, [0, 2])
    np.testing.assert_array_equal(state.cache.lengths_b, [0, 7])
    for _ in range(3):
        state = step_jit(params, bound, state, STOPS, config=config)
    np.testing.assert_array_equal(state.cache.lengths_b, [0, 10])
    assert state.token_b[0] == begun.token_b[0]
    assert state.done_b.tolist() == [True, False]


def test_attention_gets_length_0_of_rows_that_have_ended(config: LlamaConfig, params: Params, monkeypatch):
    bound = bind(None, params, config)
    begun = _begun(params, bound, [0, 1, 2], config, SLOTS)
    # Row 1 is free, row 3 is ended by the host, and row 0 ends in the middle of a call.
    state = insert(empty_state(config, 4, SLOTS, jnp.float32), begun, [2, 0, 3])
    second = step_jit(params, bound, state, STOPS, config=config)
    stops = step_jit(params, bound, second, STOPS, config=config).token_b[:1]
    lengths: list[list[int]] = []

    def record(k_lbksh: jax.Array, lengths_b: jax.Array) -> None:
        jax.debug.callback(lambda x: lengths.append(x.tolist()), lengths_b, ordered=True)

    # It finds the blocks that the kernel reads; the kernel gets the same lengths.
    monkeypatch.setattr(cache_module, "blocks_to_read", record)
    decode = jax.jit(programs.decode.__wrapped__, static_argnames=("config", "count"))
    ended = jnp.asarray([3, 4, 4, 4])
    state, tokens = decode(params, bound, state, ended, stops, config=config, count=4)
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert [int(stops[0]) in row for row in tokens.token_bt.tolist()] == [True, False, False, False]
    assert lengths == [[7, 0, 3, 0], [8, 0, 4, 0], [0, 0, 5, 0], [0, 0, 6, 0]]
    np.testing.assert_array_equal(state.cache.lengths_b, [0, 0, 7, 0])
    # The next prompt of a row has a length again.
    state = insert(state, _begun(params, bound, [3], config), [0])
    np.testing.assert_array_equal(state.cache.lengths_b, [4, 0, 7, 0])


def test_a_stop_token_ends_its_row_in_prefill_and_in_a_step(config: LlamaConfig, params: Params):
    bound = bind(None, params, config)
    begun = _begun(params, bound, [0, 1], config)
    prefilled = prefill_jit(
        params, bound, np.asarray([PROMPTS[0]], np.int32), np.asarray([3], np.int32), config=config, slots=8
    )
    again = begin(prefilled, Rows.of(begun.rows.keys_b[:1], RULES[:1]), begun.token_b[:1])
    assert again.done_b.tolist() == [True]
    after = step_jit(params, bound, begun, STOPS, config=config)
    stopped = step_jit(params, bound, begun, after.token_b[1:], config=config)
    assert stopped.done_b.tolist() == [bool(after.token_b[0] == after.token_b[1]), True]


@pytest.mark.parametrize("method", ["aligner", "lora", "prompt"])
def test_each_row_has_an_adapter_of_its_own(method: str, config: LlamaConfig, params: Params, randomized):
    adapters = [randomized(init_adapter(method, config), key) for key in (1, 2)]
    adapter_b = jnp.asarray([1, 0, 1])
    bound = bind_rows(stack_adapters(adapters), params, config, adapter_b)
    state, said = _begun(params, bound, [0, 1, 2], config), []
    state = insert(empty_state(config, 3, SLOTS, jnp.float32, first_position=bound.first_position), state, range(3))
    for _ in range(NEW):
        said.append(state.token_b.tolist())
        state = step_jit(params, bound, state, STOPS, config=config)
    for row, number in enumerate(adapter_b.tolist()):
        steps = continue_ids(params, adapters[number], PROMPTS, config=config, max_new_tokens=NEW, sampling=RULES[row])
        assert [tokens[row] for tokens in said] == [tokens[row] for tokens in steps]
