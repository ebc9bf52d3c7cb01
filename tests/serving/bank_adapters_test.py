"""A bank is served like a folder."""

import dataclasses

import openai
import pytest
from running_server import running

import aligner_jax as aj
from aligner_jax.data.templates import render_prompt
from aligner_jax.errors import InputError
from aligner_jax.peft.artifact import RecordedBase, save_adapter
from aligner_jax.peft.bank import Bank
from aligner_jax.serving.start import open_adapters

PROMPT = "Why is the sky"
OPTIONS = {"max_tokens": 8, "temperature": 0}


@pytest.fixture
def place(base, adapters, tmp_path):
    with Bank.open(tmp_path / "bank", RecordedBase(base.config, base.fingerprint), create=True) as bank:
        bank.register("A", adapters["A"], metadata={"prompt_format": '{"template": "alpaca", "system": null}'})
        bank.register("B", adapters["B"])
    return tmp_path / "bank"


def test_a_bank_is_served(place, base, adapters, tmp_path):
    with running(base, place) as server, server.client() as client:
        assert [model.id for model in client.models.list()] == ["tiny", "A", "B"]
        found = client.completions.create(model="B", prompt=PROMPT, **OPTIONS)
        assert found.choices[0].text == aj.sample(base, adapters["B"], [PROMPT], max_new_tokens=8)[0]
        chat = client.chat.completions.create(model="A", messages=[{"role": "user", "content": "Why?"}], **OPTIONS)
        prompt = render_prompt("Why?", base.tokenizer, "alpaca")
        wanted = aj.sample(base, adapters["A"], [prompt], max_new_tokens=8)[0]
        assert chat.choices[0].message.content == wanted
        save_adapter(adapters["L"], tmp_path / "L.safetensors", base)
        content = (tmp_path / "L.safetensors").read_bytes()
        with server.connect() as connection:
            head = f"PUT /v1/adapters/B HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            assert connection.recv(1000).split()[1] == b"201"
        found = client.completions.create(model="B", prompt=PROMPT, **OPTIONS)
        assert found.choices[0].text == aj.sample(base, adapters["L"], [PROMPT], max_new_tokens=8)[0]
        for status in (b"200", b"404"):
            with server.connect() as connection:
                connection.sendall(b"DELETE /v1/adapters/B HTTP/1.1\r\nhost: x\r\n\r\n")
                assert connection.recv(1000).split()[1] == status
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="B", prompt=PROMPT)


def test_a_bank_of_another_base_is_refused(place, base):
    other = dataclasses.replace(base.config, rope_theta=5.0)
    with pytest.raises(InputError, match="bank"):
        open_adapters(place, RecordedBase(other, "0123456789abcdef" * 4))
