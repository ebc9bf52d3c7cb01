"""The engine: a request gets the tokens that it gets alone, whatever runs beside it."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.engine import Engine, UnreadableAdapter
from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.decoding.request import NewToken, Request
from aligner_jax.decoding.sampler import continue_ids
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft import Adapter, apply, init_adapter, with_strength
from aligner_jax.peft.row_adapters import Capacity
from aligner_jax.peft.stored import StoredAdapter
from aligner_jax.peft.sum import sum_of

NEW = 6
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5, 8], [9] * 20, [7, 2] * 20, [2]]
CAPACITY = Capacity(tokens=6, rank=4, factors=("q_ldnh", "v_ldkh"), biases=("o_bias_ld",))
OPTIONS = EngineOptions(
    rows=3, slots=64, longest_part=16, tokens_per_call=4, alternatives=3, has_penalty=True, capacity=CAPACITY, places=4
)
RULES = [Sampling(), Sampling(1.0), Sampling(0.8, 5), Sampling(1.5, 0, 0.7), Sampling(1.0, min_p=0.1), Sampling()]


@pytest.fixture(scope="module")
def adapters(config: LlamaConfig, randomized) -> list[Adapter]:
    made = [
        init_adapter("aligner", config, num_tokens=1),
        init_adapter("aligner", config, num_tokens=3, start_layer=1),
        init_adapter("lora", config, rank=2),
        init_adapter("bias", config),
        init_adapter("llama_adapter", config, num_tokens=2),
        init_adapter("aligner", config, num_tokens=9, gates="token", start_layer=0),
    ]
    return [randomized(adapter, key) for key, adapter in enumerate(made)]


@pytest.fixture(scope="module")
def stored(adapters: list[Adapter]) -> list[StoredAdapter]:
    return [StoredAdapter.of(adapter, index) for index, adapter in enumerate(adapters)]


@pytest.fixture(scope="module")
def make(params: Params, config: LlamaConfig) -> Callable[..., Engine]:
    def make_engine(**changes) -> Engine:
        shared = {name: changes.pop(name) for name in ("adapter", "stop_ids") if name in changes}
        return Engine(params, config, dataclasses.replace(OPTIONS, **changes), **shared)

    return make_engine


@pytest.fixture(scope="module")
def requests(stored: list[StoredAdapter]) -> list[Request]:
    return [
        Request(ids, NEW, RULES[i], ((stored[i], 1.0),), seed=7, draw=i, logprobs=True) for i, ids in enumerate(PROMPTS)
    ]


def answers(new: Iterator[NewToken] | Sequence[NewToken]) -> dict[int, list[tuple[int, float | None]]]:
    """Returns tokens and log-probabilities by request."""
    found: dict[int, list[tuple[int, float | None]]] = {}
    for each in new:
        found.setdefault(each.request, []).append((each.token, each.logprob))
    return found


@pytest.fixture(scope="module")
def alone(make: Callable[..., Engine], requests: list[Request]) -> list[list[tuple[int, float | None]]]:
    """Returns tokens and log-probabilities of every request in an engine of its own."""
    return [answers(make().run([request]))[0] for request in requests]


def test_a_request_gets_the_tokens_of_its_adapter(params, config, adapters: list[Adapter], alone):
    for row, (adapter, prompt) in enumerate(zip(adapters, PROMPTS, strict=True)):
        steps = continue_ids(
            params, adapter, [prompt] * (row + 1), config=config, max_new_tokens=NEW, sampling=RULES[row], seed=7
        )
        assert [tokens[row] for tokens in steps] == [token for token, _ in alone[row]]


@pytest.mark.parametrize("seed", range(3))
def test_what_arrives_beside_a_request_changes_no_bit_of_it(seed: int, make, requests: list[Request], alone):
    engine, chance = make(), random.Random(seed)
    waiting = [chance.randrange(len(requests)) for _ in range(12)]
    numbers: dict[int, int] = {}
    found: list[NewToken] = []
    while waiting or not engine.is_idle:
        while waiting and chance.random() < 0.4:
            index = waiting.pop()
            numbers[engine.add(requests[index])] = index
        found += engine.turn()
    got = answers(found)
    assert len(numbers) == 12
    for number, index in numbers.items():
        assert got[number] == alone[index]


def test_a_prompt_in_parts_gets_the_tokens_of_the_whole_prompt(make, requests: list[Request], alone):
    whole = [answers(make(longest_part=64).run([request]))[0] for request in requests]
    assert [len(request.prompt_ids) > OPTIONS.longest_part for request in requests].count(True) == 2
    for mine, theirs in zip(whole, alone, strict=True):
        assert [token for token, _ in mine] == [token for token, _ in theirs]
        np.testing.assert_allclose(*[[logprob for _, logprob in each] for each in (mine, theirs)], atol=1e-5)


def test_strength_0_is_the_base_bit_for_bit(make, requests: list[Request], stored):
    bare = [dataclasses.replace(request, adapters=()) for request in requests]
    base = answers(make().run(bare))
    off = [dataclasses.replace(each, adapters=((adapter, 0.0),)) for each, adapter in zip(bare, stored, strict=True)]
    among = [dataclasses.replace(each, adapters=((adapter, 2.0),)) for each, adapter in zip(bare, stored, strict=True)]
    found = answers(make(rows=6).run([each for pair in zip(off, among, strict=True) for each in pair]))
    without = answers(make(capacity=None).run(bare))
    for i in range(len(requests)):
        assert found[2 * i] == base[i] == without[i]
        assert found[2 * i + 1] != base[i]


def test_log_probabilities_are_those_of_the_model(params, config, make, adapters, requests: list[Request]):
    for index in (0, 1, 3):
        new = list(make().run([requests[index]]))
        ids = [*PROMPTS[index], *(each.token for each in new)]
        logits = apply(params, adapters[index], jnp.asarray([ids]), config=config)
        wanted = np.asarray(jax.nn.log_softmax(logits[0, len(PROMPTS[index]) - 1 : -1]))
        np.testing.assert_allclose([each.logprob for each in new], wanted[range(NEW), ids[-NEW:]], atol=1e-5)
        for each, of_step in zip(new, wanted, strict=True):
            assert [alternative.token for alternative in each.alternatives] == np.argsort(-of_step)[:3].tolist()
            np.testing.assert_allclose(
                [alternative.logprob for alternative in each.alternatives], np.sort(of_step)[::-1][:3], atol=1e-5
            )


@pytest.mark.parametrize(
    "terms",
    [((0, 1.0), (5, 0.5)), ((1, 0.7), (4, -1.0)), ((2, 1.0), (2, 0.5)), ((0, 1.0), (1, 1.0), (2, 2.0), (3, 1.0))],
)
def test_a_weighted_sum_is_the_sum_of_the_adapters(terms, params, config, make, adapters, stored):
    prompt = PROMPTS[1]
    request = Request(prompt, NEW, adapters=tuple((stored[i], weight) for i, weight in terms), logprobs=True)
    got = answers(make().run([request]))[0]
    combined = sum_of([with_strength(adapters[i], weight) for i, weight in terms])
    wanted = answers(make(adapter=combined, capacity=None).run([dataclasses.replace(request, adapters=())]))[0]
    assert [token for token, _ in got] == [token for token, _ in wanted]
    np.testing.assert_allclose([x for _, x in got], [x for _, x in wanted], atol=1e-5)


def test_a_strength_is_that_of_with_strength(params, config, make, adapters, stored):
    for adapter, kept in list(zip(adapters, stored, strict=True))[:4]:
        request = Request(PROMPTS[0], NEW, adapters=((kept, 0.5),), logprobs=True)
        got = answers(make().run([request]))[0]
        shared = make(adapter=with_strength(adapter, 0.5), capacity=None)
        wanted = answers(shared.run([dataclasses.replace(request, adapters=())]))[0]
        np.testing.assert_allclose([x for _, x in got], [x for _, x in wanted], atol=1e-5)


def test_more_adapters_than_places_are_bound_again(make, config, randomized, params):
    many = [randomized(init_adapter("aligner", config, num_tokens=2), key) for key in range(9)]
    kept = [StoredAdapter.of(adapter, key) for key, adapter in enumerate(many)]
    engine = make()
    order = [*range(9), *range(9), 8, 8]
    got = answers(engine.run([Request(PROMPTS[0], NEW, adapters=((kept[i], 1.0),)) for i in order]))
    assert (engine.held.hits, engine.held.misses) == (2, 18)
    for place, i in enumerate(order):
        steps = continue_ids(params, many[i], PROMPTS[:1], config=config, max_new_tokens=NEW, sampling=Sampling())
        assert [token for token, _ in got[place]] == [tokens[0] for tokens in steps]


def huge(adapter: Adapter) -> Adapter:
    """Returns an adapter whose numbers are finite, and whose effect is not."""
    return adapter.replace(trainable={name: jnp.full_like(x, 1e30) for name, x in adapter.trainable.items()})


# A large bias ends in a norm, and overflows nothing.
@pytest.mark.parametrize("index", [0, 1, 2, 4, 5])
def test_a_request_that_overflows_harms_no_other(index: int, make, adapters, requests: list[Request], stored, alone):
    """Neither the row's next request nor those beside it, whose unused tokens and ranks point to the first place."""
    bad = dataclasses.replace(requests[index], adapters=((StoredAdapter.of(huge(adapters[index]), "huge"), 1.0),))
    engine = make(rows=2)
    first = answers(engine.run([bad, bad]))
    assert any(not np.isfinite(logprob) for _, logprob in first[0])
    others = [dataclasses.replace(request, adapters=()) for request in requests[:2]]
    found = answers(engine.run([bad, *others, *requests[1:3]]))
    wanted = answers(make(rows=2).run([*others, *requests[1:3]]))
    assert [found[i + 1] for i in range(4)] == [wanted[i] for i in range(4)]


def test_an_adapter_that_cannot_be_read_ends_its_request_alone(make, requests: list[Request], stored, alone):
    def unreadable() -> dict:
        raise InputError("numbers.1 is damaged")

    broken = dataclasses.replace(stored[1], key="broken", read=unreadable)
    engine = make()
    numbers = [
        engine.add(dataclasses.replace(requests[i], adapters=((broken, 1.0),)) if i in (1, 4) else requests[i])
        for i in range(6)
    ]
    found, failed = [], []
    while not engine.is_idle:
        try:
            found += engine.turn()
        except UnreadableAdapter as error:
            failed.append((error.request, str(error)))
    assert failed == [(numbers[i], "numbers.1 is damaged") for i in (1, 4)]
    got = answers(found)
    assert [got[numbers[i]] for i in (0, 2, 3, 5)] == [alone[i] for i in (0, 2, 3, 5)]
    assert engine.num_running == 0


def test_a_cancelled_request_frees_its_row_at_once(make, requests: list[Request], alone):
    engine = make(rows=1, tokens_per_call=1)
    first, second = engine.add(requests[0]), engine.add(requests[4])
    found = engine.turn()
    assert (engine.num_running, engine.num_waiting) == (1, 1)
    engine.cancel(first)
    assert (engine.num_running, engine.num_waiting) == (0, 1)
    engine.turn()
    assert engine.num_running == 1
    while not engine.is_idle:
        found += engine.turn()
    got = answers(found)
    # An engine of one row has other programs, which round differently.
    assert [token for token, _ in got[second]] == [token for token, _ in alone[4]]
    assert len(got[first]) < NEW


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_long_prompt_that_is_cancelled_leaves_the_others_alone(turns: int, make, requests: list[Request], alone):
    engine = make()
    long, short = engine.add(requests[4]), engine.add(requests[0])
    found = []
    for _ in range(turns):
        found += engine.turn()
    engine.cancel(long)
    again = engine.add(requests[4])
    while not engine.is_idle:
        found += engine.turn()
    got = answers(found)
    assert (got[short], got[again]) == (alone[0], alone[4])
    assert long not in got or len(got[long]) <= NEW


def test_nothing_compiles_after_the_warm_up(make, requests: list[Request], stored, monkeypatch):
    engine = make()
    engine.warm_up({(each.method, each.options) for each in stored})
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "compile" in name else None
    )
    for length in range(1, 58):
        for _ in engine.run([dataclasses.replace(requests[length % 6], prompt_ids=[1] * length)]):
            pass
    list(engine.run(requests * 2))
    assert compiled == []
    # The listener does hear of a compilation.
    jax.jit(lambda x: x * 3 + length)(1.0)
    assert compiled != []


def test_a_stop_token_is_the_last_one(make, requests: list[Request], alone):
    stop = alone[0][2][0]
    new = list(make(stop_ids=frozenset([stop])).run(requests[:1]))
    first = [token for token, _ in alone[0]].index(stop)
    assert [(each.token, each.end) for each in new] == [
        *((token, None) for token, _ in alone[0][:first]), (stop, "stop"),
    ]  # fmt: skip
    new = list(make().run(requests[:1]))
    assert [each.end for each in new] == [None] * (NEW - 1) + ["length"]


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({"prompt_ids": []}, {}, "the prompt is empty"),
        ({"prompt_ids": [40]}, {}, "the prompt has the token 40"),
        ({"max_new_tokens": 0}, {}, "0 new ones do not fit"),
        ({"prompt_ids": [1] * 60}, {}, "60 tokens and 6 new ones do not fit the model's context of 64"),
        ({"prompt_ids": [1] * 40}, {"slots": 32}, "40 tokens and 6 new ones do not fit the 32 tokens that the engine"),
        ({"seed": -1}, {}, "seed is -1"),
        ({"logprobs": True}, {"alternatives": None}, "without log-probabilities"),
        ({"sampling": Sampling(repetition_penalty=1.2)}, {"has_penalty": False}, "without repetition penalties"),
        ({}, {"capacity": None}, "without adapters"),
        ({}, {"capacity": Capacity(tokens=2)}, "need tokens 3 in a row, but the engine has room for 2"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused(changes: dict, options: dict, sentence: str, make, stored):
    engine = make(**options)
    with pytest.raises(InputError) as caught:
        engine.add(dataclasses.replace(Request(PROMPTS[0], NEW, adapters=((stored[1], 1.0),)), **changes))
    assert sentence in str(caught.value)
    assert engine.is_idle


@pytest.mark.parametrize("method", ["full", "prompt", "prefix"])
def test_methods_that_rows_cannot_have_are_refused(method: str, make, config: LlamaConfig):
    adapter = init_adapter(method, config)
    with pytest.raises(InputError, match=f"adapters of method '{method}' cannot be different in the rows of a batch"):
        make().add(Request(PROMPTS[0], NEW, adapters=((StoredAdapter.of(adapter, 0), 1.0),)))
