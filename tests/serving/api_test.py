"""OpenAI's API, asked by OpenAI's client: models, options, streams, and errors."""

import dataclasses
import math

import openai
import pytest
import running_server

import aligner_jax as aj
from aligner_jax.chatting.local import LocalModel, LocalOptions
from aligner_jax.chatting.mix import Mix
from aligner_jax.chatting.model import Question
from aligner_jax.data.templates import render_prompt
from aligner_jax.decoding.engine import Engine
from aligner_jax.peft import with_strength
from aligner_jax.peft.sum import sum_of
from aligner_jax.serving import transport

PROMPT = "Why is the sky"
MESSAGES = [{"role": "user", "content": "Why?"}]
NEW = 12
HOT = 8.0
"""Temperature at which the tiny model does not repeat one token."""
MODELS = {
    "tiny": {},
    "A": {"A": 1.0},
    "A@0.5": {"A": 0.5},
    "B": {"B": 1.0},
    "B@-1": {"B": -1.0},
    "L": {"L": 1.0},
    "A+B": {"A": 1.0, "B": 1.0},
    "A@0.5+B@2+L@1e-1": {"A": 0.5, "B": 2.0, "L": 0.1},
}


def sampled(base, adapters, model: str, prompts: list[str], **options) -> list[str]:
    """Returns the texts of `aj.sample` for a model's name."""
    terms = [with_strength(adapters[name], weight) for name, weight in MODELS[model].items()]
    adapter = None if not terms else terms[0] if len(terms) == 1 else sum_of(terms)
    return aj.sample(base, adapter, prompts, max_new_tokens=NEW, **options)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_answers_like_sample(model: str, client, base, adapters):
    for options in ({"temperature": 0.0}, {"temperature": HOT, "seed": 4}):
        found = client.completions.create(model=model, prompt=PROMPT, max_tokens=NEW, **options)
        assert found.choices[0].text == sampled(base, adapters, model, [PROMPT], **options)[0]


def test_models_differ(client):
    answers = {
        client.completions.create(model=model, prompt=PROMPT, max_tokens=60, temperature=HOT, seed=4).choices[0].text
        for model in MODELS
    }
    assert len(answers) == len(MODELS)


def test_extra_options_are_those_of_sample(client, base, adapters):
    extra = {"top_k": 5}
    options = {"temperature": HOT, "seed": 9, "top_p": 0.9}
    found = client.completions.create(model="B", prompt=PROMPT, max_tokens=NEW, extra_body=extra, **options)
    assert found.choices[0].text == sampled(base, adapters, "B", [PROMPT], **options, **extra)[0]
    greedy = sampled(base, adapters, "B", [PROMPT])[0]
    assert found.choices[0].text != greedy
    found = client.completions.create(model="B", prompt=PROMPT, max_tokens=NEW, extra_body={"min_p": 1.0}, **options)
    assert found.choices[0].text == greedy
    tokens = []
    for penalty in (1, 1e9):
        extra = {"repetition_penalty": penalty}
        found = client.completions.create(model="A", prompt=PROMPT, logprobs=0, temperature=0, extra_body=extra)
        tokens.append(found.choices[0].logprobs.tokens)
    assert len(set(tokens[0])) < 5
    # Different tokens that are a part of a character look the same.
    texts = [token for token in tokens[1] if "\ufffd" not in token]
    assert len(set(texts)) == len(texts) > 5


def test_prompts_and_n_make_choices_in_order(client, base, adapters):
    prompts = [PROMPT, "Add 1 to"]
    options = {"temperature": HOT, "seed": 4}
    found = client.completions.create(model="A", prompt=prompts, max_tokens=NEW, **options)
    assert [choice.text for choice in found.choices] == sampled(base, adapters, "A", prompts, **options)
    twice = client.completions.create(model="A", prompt=prompts[0], n=2, max_tokens=NEW, **options)
    assert [choice.text for choice in twice.choices] == sampled(base, adapters, "A", [PROMPT] * 2, **options)
    assert [choice.index for choice in twice.choices] == [0, 1]
    ids = base.tokenizer.encode(PROMPT, bos=base.tokenizer.add_bos)
    of_ids = client.completions.create(model="A", prompt=ids, n=1, max_tokens=NEW, **options)
    assert of_ids.choices[0].text == twice.choices[0].text
    assert twice.usage.prompt_tokens == of_ids.usage.prompt_tokens == len(ids)
    assert (twice.usage.completion_tokens, of_ids.usage.completion_tokens) == (2 * NEW, NEW)


@pytest.mark.parametrize("stop", [None, "stop"])
def test_a_stream_of_completions_is_the_whole_answer(stop, client):
    options = {
        "model": "A", "prompt": PROMPT, "max_tokens": NEW, "temperature": HOT, "seed": 4, "n": 2, "logprobs": 2,
    }  # fmt: skip
    whole = client.completions.create(**options)
    if stop is not None:
        # A part of the first answer that begins and ends within tokens.
        assert any(3 <= offset < 9 for offset in whole.choices[0].logprobs.text_offset)
        options["stop"] = whole.choices[0].text[3:9]
        whole = client.completions.create(**options)
        assert (whole.choices[0].finish_reason, len(whole.choices[0].text)) == ("stop", 3)
        assert whole.choices[0].logprobs.text_offset[-1] < 3
    texts, ends, logprobs, usages = ["", ""], [None, None], [[], []], []
    for event in client.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usages.append(event.usage)
        for choice in event.choices:
            assert ends[choice.index] is None
            texts[choice.index] += choice.text
            logprobs[choice.index] += choice.logprobs.token_logprobs
            ends[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert logprobs == [choice.logprobs.token_logprobs for choice in whole.choices]
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1] == whole.usage


def test_a_stream_of_a_chat_is_the_whole_answer(client):
    options = {
        "model": "B", "messages": MESSAGES, "max_completion_tokens": NEW, "temperature": HOT, "seed": 4, "n": 2,
        "logprobs": True, "top_logprobs": 1,
    }  # fmt: skip
    whole = client.chat.completions.create(**options)
    events = list(client.chat.completions.create(**options, stream=True))
    for choice in whole.choices:
        mine = [each.choices[0] for each in events if each.choices[0].index == choice.index]
        assert mine[0].delta.role == choice.message.role == "assistant"
        assert "".join(each.delta.content or "" for each in mine) == choice.message.content
        assert [x for each in mine for x in (each.logprobs.content if each.logprobs else [])] == choice.logprobs.content
        assert [each.finish_reason for each in mine][-1] == choice.finish_reason == "length"
        assert len(choice.logprobs.content) == NEW
        for token in choice.logprobs.content:
            assert len(token.top_logprobs) == 1
            assert token.logprob <= token.top_logprobs[0].logprob <= 0
            assert token.bytes is None or bytes(token.bytes).decode() == token.token


def test_a_chat_has_the_prompt_that_the_adapter_records(client, base, adapters):
    options = {"max_tokens": NEW, "temperature": 0}
    alpaca = client.chat.completions.create(model="A@2", messages=MESSAGES, **options)
    prompt = render_prompt("Why?", base.tokenizer, "alpaca")
    doubled = with_strength(adapters["A"], 2)
    assert alpaca.choices[0].message.content == aj.sample(base, doubled, [prompt], max_new_tokens=NEW)[0]
    for model, messages in (
        ("B", MESSAGES),
        ("tiny", [{"role": "developer", "content": "Be short."}, *MESSAGES]),
        ("L", [*MESSAGES, {"role": "assistant", "content": "So."}, {"role": "user", "content": [
            {"type": "text", "text": "Oh"}, {"type": "text", "text": "?"}]}]),
    ):  # fmt: skip
        found = client.chat.completions.create(model=model, messages=messages, **options)
        plain = [{"role": each["role"].replace("developer", "system"), "content": each["content"]} for each in messages]
        if isinstance(plain[-1]["content"], list):
            plain[-1]["content"] = "Oh?"
        text = base.tokenizer.render_chat(plain, add_generation_prompt=True)
        wanted = aj.sample(base, adapters.get(model), [text], max_new_tokens=NEW)[0]
        assert found.choices[0].message.content == wanted


def test_a_conversation_has_the_prompt_of_the_command_chat(client, base, adapters, tmp_path):
    # The prompt takes most of the 128 tokens of a request.
    new = 8
    turns = [*MESSAGES, {"role": "assistant", "content": "So."}, {"role": "user", "content": "Oh?"}]
    found = client.chat.completions.create(model="A", messages=turns, max_tokens=new, temperature=0)
    prompt = render_prompt("Why?", base.tokenizer, "alpaca") + "So.\n\n### Instruction:\nOh?\n\n### Response:"
    assert found.choices[0].message.content == aj.sample(base, adapters["A"], [prompt], max_new_tokens=new)[0]
    file = tmp_path / "A.safetensors"
    aj.save_adapter(adapters["A"], file, base, prompt_format={"template": "alpaca", "system": None})
    chat = LocalModel(base, LocalOptions(template="auto", context=256, max_new_tokens=new))
    mix = Mix(((chat.find(str(file)), 1.0),))
    pieces = chat.answers(Question(turns), [mix], lambda sentence: None)
    assert "".join(piece.text for piece in pieces) == found.choices[0].message.content


@pytest.mark.parametrize(
    ("model", "messages", "sentence"),
    [
        ("A", [*MESSAGES, {"role": "assistant", "content": "x"}], "turns of user and assistant alternate"),
        ("A", [{"role": "system", "content": "x"}, *MESSAGES], "has no place for a system message"),
    ],
)
def test_a_conversation_that_no_prompt_has_is_refused(model: str, messages: list, sentence: str, client):
    with pytest.raises(openai.BadRequestError, match=sentence) as caught:
        client.chat.completions.create(model=model, messages=messages)
    assert caught.value.param == "messages"


def test_a_base_without_a_chat_template_has_completions(client, server, monkeypatch):
    plain = dataclasses.replace(server.service.tokenizer, chat_template=None)
    monkeypatch.setattr(server.service, "tokenizer", plain)
    sentence = "messages: the base has no chat template; write the prompt yourself, and send it to /v1/completions"
    with pytest.raises(openai.BadRequestError, match=sentence):
        client.chat.completions.create(model="tiny", messages=MESSAGES)


def test_a_stop_token_ends_the_answer(client, base):
    ids = base.tokenizer.encode(PROMPT)
    end = base.tokenizer.eos_id
    for seed in range(40):
        options = {"temperature": 5.0, "seed": seed, "max_tokens": 40}
        found = client.completions.create(model="tiny", prompt=ids, logprobs=0, **options)
        if found.choices[0].finish_reason == "stop":
            assert "<|im_end|>" not in found.choices[0].text
            assert base.tokenizer.backend.token(end) not in found.choices[0].logprobs.tokens
            assert found.usage.completion_tokens == len(found.choices[0].logprobs.tokens) + 1 < 40
            return
    pytest.fail("no answer ended by itself")


def test_log_probabilities_are_sums_to_one(client):
    found = client.completions.create(model="A", prompt=PROMPT, max_tokens=3, logprobs=5, temperature=0)
    logprobs = found.choices[0].logprobs
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert max(top, key=top.get) == token
        assert top[token] == logprob
        assert sum(map(math.exp, top.values())) <= 1 + 1e-6


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("made_before", [0, 2])
def test_log_probabilities_that_are_not_finite_have_an_error_of_their_own(
    stream: bool, made_before: int, client, server, monkeypatch
):
    turn, made = Engine.turn, []

    def broken(self):
        new = turn(self)
        made.extend(new)
        return new if len(made) <= made_before else [each._replace(logprob=math.nan) for each in new]

    monkeypatch.setattr(Engine, "turn", broken)
    options = {"model": "A", "prompt": PROMPT, "max_tokens": NEW, "temperature": 0, "stream": stream}
    with pytest.raises(openai.APIError, match="log-probabilities that are not finite") as caught:
        list(client.completions.create(**options, logprobs=2))
    assert caught.value.code == "not_finite"
    assert server.becomes_idle()
    assert list(client.completions.create(**options))


def test_an_event_is_json():
    with pytest.raises(ValueError, match="JSON"):
        transport.event({"logprob": math.nan})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10_000}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"seed": 1.5}, "seed"),
        ({"stop": 3}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, None),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": ["x"] * 17}, "prompt"),
        ({"prompt": "half \ud800"}, "prompt"),
        ({"prompt": "x " * 200}, None),
        ({"model": 3}, "model"),
        ({"model": None}, "model"),
        ({"model": "A@x"}, "model"),
        ({"model": "A@nan"}, "model"),
        ({"model": "A+A"}, "model"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(fields: dict, param: str | None, server: running_server.Running):
    body = {"model": "A", "prompt": PROMPT, "max_tokens": 4, **fields}
    with server.connect() as connection:
        connection.sendall(running_server.http_request("/v1/completions", body))
        ((status, found),) = running_server.read_responses(connection)
    assert (status, found["error"]["param"], found["error"]["type"]) == (400, param, "invalid_request_error")
    assert found["error"]["message"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        ([3], "messages[0]"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content"),
    ],
    ids=str,
)
def test_a_wrong_message_is_named(messages, param: str, server: running_server.Running):
    with server.connect() as connection:
        connection.sendall(running_server.http_request("/v1/chat/completions", {"model": "B", "messages": messages}))
        ((status, found),) = running_server.read_responses(connection)
    assert (status, found["error"]["param"]) == (400, param)


def test_completions_take_the_length_of_chats(client):
    options = {"model": "A", "prompt": PROMPT, "temperature": 0}
    found = client.completions.create(**options, max_tokens=5, extra_body={"max_completion_tokens": 3})
    assert found.usage.completion_tokens == 3
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**options, extra_body={"max_completion_tokens": "3"})
    assert caught.value.param == "max_completion_tokens"


def test_fields_that_change_nothing_are_taken(client):
    extra = {"unknown": [1], "user": "me", "logit_bias": {}, "echo": False, "best_of": 1, "top_k": -1}
    found = client.completions.create(model="A", prompt=PROMPT, presence_penalty=0, temperature=0, extra_body=extra)
    assert found.usage.completion_tokens == 16


@pytest.mark.parametrize("model", ["C", "", "A+C", "../A", "A/../A", "tiny@2", ".A", "A\x00"])
def test_an_unknown_model_is_not_found(model: str, client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model=model, prompt=PROMPT)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=model, messages=MESSAGES)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny", "A", "B", "L"]
    assert client.models.retrieve("A@0.5+B").id == "A@0.5+B"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("C")


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/v1/nothing", "GET", 404), ("/v1/completions", "GET", 405), ("/", "POST", 404)]
)
def test_unknown_paths_have_errors_in_the_same_format(path: str, method: str, status: int, server):
    with server.connect() as connection:
        connection.sendall(running_server.http_request(path, method=method))
        ((found, body),) = running_server.read_responses(connection)
    assert found == status
    assert path in body["error"]["message"]
