"""The model of a chat in this process: its answers are those of `sample`."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import aligner_jax as aj
from aligner_jax.chatting.local import LocalModel, LocalOptions
from aligner_jax.chatting.mix import Mix
from aligner_jax.chatting.model import Question
from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError

FORMAT = PromptFormat("chat", "Be brief.")
SEED, TEMPERATURE = 3, 10.0
OPTIONS = LocalOptions(template="auto", context=128, max_new_tokens=8, sampling=Sampling(TEMPERATURE), seed=SEED)
METHODS = {
    "short": ("aligner", {"num_tokens": 1, "start_layer": 0}),
    "long": ("aligner", {"num_tokens": 3, "start_layer": 1}),
    "ranks": ("lora", {"rank": 2}),
    "whole": ("full", {}),
}


@pytest.fixture(scope="module")
def base(tiny_subject) -> aj.Base:
    return tiny_subject().base


@pytest.fixture(scope="module")
def adapters(base: aj.Base, randomized) -> dict[str, aj.Adapter]:
    made = {name: aj.init_adapter(method, base.config, **options) for name, (method, options) in METHODS.items()}
    drawn = {name: randomized(adapter, key) for key, (name, adapter) in enumerate(made.items())}
    # Strong ones, so that half of one already changes the draws.
    return {
        name: adapter.replace(
            trainable={key: (1 if name == "whole" else 5) * x for key, x in adapter.trainable.items()}
        )
        for name, adapter in drawn.items()
    }


@pytest.fixture(scope="module")
def files(base: aj.Base, adapters: dict[str, aj.Adapter], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    for name, adapter in adapters.items():
        aj.save_adapter(adapter, folder / f"{name}.safetensors", base, prompt_format=dataclasses.asdict(FORMAT))
    return {name: str(folder / f"{name}.safetensors") for name in adapters}


@pytest.fixture(scope="module")
def make(base: aj.Base, files: dict[str, str]) -> Callable[..., LocalModel]:
    def make_model(**changes) -> LocalModel:
        model = LocalModel(base, dataclasses.replace(OPTIONS, **changes))
        assert [model.find(file) for file in files.values()] == list(METHODS) == model.names()
        return model

    return make_model


@pytest.fixture(scope="module")
def expected(base: aj.Base, adapters: dict[str, aj.Adapter]) -> Callable[..., str]:
    """Returns the answer of `sample` to the n-th question of a chat, which is asked with the format of training."""

    def answer(mix: Mix, text: str = "Why?", number: int = 1, chosen: PromptFormat = FORMAT) -> str:
        parts = [(adapters[name], weight) for name, weight in mix.weights]
        prompts = ["x"] * number + [chosen.render(text, base.tokenizer)]
        adapter = aj.combine(parts, base) if parts else None
        tokens, decode = [], base.tokenizer.stream_decoder()
        aj.sample(
            base, adapter, prompts, max_new_tokens=8, temperature=TEMPERATURE, seed=SEED,
            on_tokens=lambda row: tokens.append(row[-1]),
        )  # fmt: skip
        return "".join(decode(token) for token in tokens if token is not None)

    return answer


def question(*texts: str, system: str | None = None) -> Question:
    roles = ("user", "assistant") * len(texts)
    return Question([{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)], system)


def ask(model: LocalModel, asked: Question, *mixes: Mix) -> tuple[list[str], list[str]]:
    """Returns the answers, and what was said beside them."""
    texts, said = [""] * len(mixes), []
    for piece in model.answers(asked, mixes, said.append):
        texts[piece.answer] += piece.text
    return texts, [sentence for sentence in said if "cut off" not in sentence]


def one(name: str, strength: float = 1.0) -> Mix:
    return Mix(((name, 1.0),), strength)


@pytest.mark.parametrize(
    "mix",
    [one("short"), one("short", 0.5), one("ranks"), Mix((("long", 0.5), ("ranks", 1.0))), one("whole", 0.5)],
    ids=str,
)
def test_adapters_and_base_answer_as_they_are_sampled(make, expected, mix: Mix):
    texts, _ = ask(make(), question("Why?"), Mix(), mix)
    assert texts == [expected(Mix()), expected(mix)]
    assert len({*texts}) == 2
    assert "" not in texts


def test_strength_0_is_the_base(make, expected):
    texts, _ = ask(make(), question("Why?"), one("long", 0.0))
    assert texts == [expected(Mix())]


def test_adapters_are_changed_within_a_chat(make, expected):
    """An engine with more room takes the place of the first; questions have draws of their own."""
    model = make()
    for number, mix in enumerate([Mix(), one("short"), one("long"), one("short"), one("whole"), one("ranks")], 1):
        chosen = FORMAT if mix.terms else PromptFormat("chat")
        assert ask(model, question("Why?"), mix)[0] == [expected(mix, number=number, chosen=chosen)]


def test_the_system_prompt_is_the_users_or_the_recorded_one(make, expected):
    kind = PromptFormat("chat", "Sing every answer, as pirates at sea do.")
    texts, _ = ask(make(), question("Why?", system="Sing every answer, as pirates at sea do."), one("short"))
    assert texts == [expected(one("short"), chosen=kind)] != [expected(one("short"))]


def test_an_earlier_turn_changes_the_answer(make, base: aj.Base):
    texts, said = ask(make(), question("Who?", "Me.", "Why?"), Mix())
    assert texts != ask(make(), question("Why?"), Mix())[0]
    assert said == []


def test_the_oldest_turns_are_left_out_and_that_is_said_once(make):
    model = make(context=64)
    old = ["Who is it that comes here in the night?", "I am not sure who that is, but I will ask."] * 3
    texts, said = ask(model, question(*old, "Why?"), one("short"))
    assert texts[0]
    (sentence,) = said
    left_out = int(sentence.split(" oldest")[0].split()[-1])
    assert sentence.startswith("the conversation no longer fits 64 tokens: its ")
    assert 0 < left_out < 7
    assert left_out % 2 == 0
    fresh = make(context=64)
    assert ask(fresh, question(*old[left_out:], "Why?"), one("short")) == (texts, [])
    assert ask(model, question(*old, "Why?"), one("short"))[1] == []
    # A question goes with its answer, however many tokens there is room for.
    for room in range(48, 128, 8):
        ids, count = make(context=room)._prompt(question(*old, "Why?"), one("short"))
        assert (len(ids) <= room - 8, count % 2) == (True, 0)
    with pytest.raises(InputError, match=r"^the question has \d+ tokens, but 56 fit beside 8 new ones in 64$"):
        ask(model, question("Why? " * 60), one("short"))


def test_ctrl_c_ends_an_answer_between_two_tokens(make, expected):
    model = make(max_new_tokens=64)
    pieces = model.answers(question("Why?"), [Mix(), one("long")], print)
    next(pieces)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        list(pieces)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    (engine,) = [model._rows]
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    assert ask(model, question("Why?"), one("short"))[0][0].startswith(expected(one("short"), number=2))
    assert model._rows is engine


def test_a_second_ctrl_c_ends_it_within_a_program(make, expected, monkeypatch: pytest.MonkeyPatch):
    model = make()
    pieces = model.answers(question("Why?"), [one("long")], print)
    next(pieces)
    engine = model._rows

    def stuck():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        raise AssertionError("nothing was raised")

    monkeypatch.setattr(engine, "turn", stuck)
    with pytest.raises(KeyboardInterrupt):
        list(pieces)
    assert ask(model, question("Why?"), one("short"))[0] == [expected(one("short"), number=2)]
    assert model._rows is not engine


def test_a_closed_generator_frees_the_rows(make):
    model = make()
    pieces = model.answers(question("Why?"), [one("short")], print)
    next(pieces)
    pieces.close()
    assert model._rows.num_running == 0


def test_a_file_is_read_again_when_it_is_named_again(
    make, base: aj.Base, adapters: dict[str, aj.Adapter], tmp_path: Path
):
    model, file = make(), str(tmp_path / "mine.safetensors")
    answers = []
    for name in ("short", "long"):
        aj.save_adapter(adapters[name], file, base, prompt_format=dataclasses.asdict(FORMAT))
        assert model.find(file) == "mine"
        answers.append(ask(model, question("Why?", system="Be."), one("mine"))[0])
    assert answers[0] != answers[1]


def test_adapters_that_do_not_exist_or_fit_are_refused(make, files: dict[str, str], base: aj.Base, tmp_path: Path):
    model = make()
    with pytest.raises(InputError, match=r"^there is no adapter 'shirt'; did you mean short\?$"):
        model.find("shirt")
    twin = tmp_path / "short.safetensors"
    twin.write_bytes(Path(files["short"]).read_bytes())
    with pytest.raises(InputError, match="would both have the name 'short'; rename one"):
        model.find(str(twin))
    (tmp_path / "odd.safetensors").write_text("odd")
    with pytest.raises(InputError, match=r"odd\.safetensors"):
        model.find(str(tmp_path / "odd.safetensors"))
    other = base.replace(params=base.params.replace(embed_vd=base.params.embed_vd + 1))
    with pytest.raises(InputError, match="was trained on a base of the same shape with other weights"):
        LocalModel(other, OPTIONS).find(files["short"])
    with pytest.raises(InputError, match=r"^there is no adapter 'none'; give its file$"):
        LocalModel(base, OPTIONS).find("none")


def test_names_can_be_parts_of_sums(base: aj.Base, files: dict[str, str], tmp_path: Path):
    odd = tmp_path / "my a@b+c.safetensors"
    odd.write_bytes(Path(files["short"]).read_bytes())
    assert LocalModel(base, OPTIONS).find(str(odd)) == "my_a_b_c"


@pytest.mark.parametrize("sizes", [(8, 8), (1024, 8)])
def test_a_context_that_does_not_fit_is_refused(base: aj.Base, sizes: tuple[int, int]):
    context, new = sizes
    with pytest.raises(InputError, match=f"--context is {context} and --max_new_tokens {new}, but the first should"):
        LocalModel(base, dataclasses.replace(OPTIONS, context=context, max_new_tokens=new))


def test_a_base_without_a_tokenizer_is_refused(base: aj.Base):
    with pytest.raises(InputError, match="the base has no tokenizer"):
        LocalModel(base.replace(tokenizer=None), OPTIONS)
