"""Adapters are uploaded, replaced and deleted while the server runs."""

import dataclasses
import json

import numpy as np
import openai
import pytest
import running_server

import aligner_jax as aj
from aligner_jax.decoding import held
from aligner_jax.errors import InputError
from aligner_jax.peft import Adapter, init_adapter
from aligner_jax.peft.artifact import RecordedBase, save_adapter
from aligner_jax.serving.adapters import Adapters, parse_upload
from aligner_jax.serving.limits import Limits
from aligner_jax.serving.start import open_adapters, room_for

PROMPT = "Why is the sky"
NEW = 8


@pytest.fixture
def file_of(base, tmp_path):
    def make(adapter: Adapter, of=base) -> bytes:
        save_adapter(adapter, tmp_path / "made.safetensors", of)
        return (tmp_path / "made.safetensors").read_bytes()

    return make


def ask(server: running_server.Running, path: str, content: bytes = b"", method: str = "PUT") -> tuple[int, dict]:
    with server.connect() as connection:
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        return running_server.read_responses(connection)[0]


def answer(client: openai.OpenAI, model: str) -> str:
    return client.completions.create(model=model, prompt=PROMPT, max_tokens=NEW, temperature=0).choices[0].text


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/adapters/new-1.x"), ("POST", "/v1/adapters?name=new-1.x")])
def test_an_adapter_is_uploaded_replaced_and_deleted(method: str, path: str, server, client, base, adapters, file_of):
    rng = np.random.default_rng(8)
    other = adapters["A"].replace(
        trainable={k: rng.normal(size=x.shape).astype(np.float32) for k, x in adapters["A"].trainable.items()}
    )
    for adapter in (adapters["B"], other):
        assert ask(server, path, file_of(adapter), method) == (201, {"id": "new-1.x", "object": "adapter"})
        assert answer(client, "new-1.x") == aj.sample(base, adapter, [PROMPT], max_new_tokens=NEW)[0]
        assert [model.id for model in client.models.list()] == ["tiny", "A", "B", "L", "new-1.x"]
    assert ask(server, "/v1/adapters/new-1.x", method="DELETE")[0] == 200
    with pytest.raises(openai.NotFoundError):
        answer(client, "new-1.x")
    assert ask(server, "/v1/adapters/new-1.x", method="DELETE")[0] == 404


def test_adapters_are_listed_in_pages(server):
    status, page = ask(server, "/v1/adapters?limit=2", method="GET")
    assert (status, [each["id"] for each in page["data"]], page["has_more"]) == (200, ["A", "B"], True)
    _, page = ask(server, "/v1/adapters?after=B", method="GET")
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (["L"], False)
    assert ask(server, "/v1/adapters?limit=x", method="GET")[0] == 400


def test_an_adapter_of_another_base_is_refused(server, client, base, adapters, file_of):
    other = RecordedBase(base.config, "0123456789abcdef" * 4)
    status, body = ask(server, "/v1/adapters/A", file_of(adapters["B"], other))
    assert (status, body["error"]["code"]) == (400, "invalid_adapter")
    assert "the upload was trained on a base of the same shape with other weights" in body["error"]["message"]
    shape = RecordedBase(dataclasses.replace(base.config, rope_theta=5.0), other.fingerprint)
    status, body = ask(server, "/v1/adapters/A", file_of(adapters["B"], shape))
    assert (status, "another model than this base" in body["error"]["message"]) == (400, True)
    # The one that is there stays.
    assert answer(client, "A") == aj.sample(base, adapters["A"], [PROMPT], max_new_tokens=NEW)[0]


def test_what_is_no_adapter_is_refused(server, base, adapters, file_of):
    good = file_of(adapters["A"])
    for content in (b"", b"x" * 100, good[:-1], good[:-4] + b"\xff" * 4):
        status, body = ask(server, "/v1/adapters/bad", content)
        assert (status, body["error"]["code"]) == (400, "invalid_adapter")
        assert "/tmp" not in body["error"]["message"]
    for adapter, problem in (
        (init_adapter("full", base.config), "cannot be different in the rows"),
        (init_adapter("aligner", base.config, num_tokens=9), "need tokens 9"),
    ):
        status, body = ask(server, "/v1/adapters/bad", file_of(adapter))
        assert (status, problem in body["error"]["message"]) == (400, True)
    assert ask(server, "/v1/models/bad", method="GET")[0] == 404


@pytest.mark.parametrize("name", ["..", ".hidden", "a+b", "a@2", "%2e%2e%2fA", "a%00b", "tiny", "x" * 201, ""])
def test_wrong_names_are_refused(name: str, server, adapters, file_of):
    status, _ = ask(server, f"/v1/adapters/{name}", file_of(adapters["A"]))
    assert status in (400, 404, 405)
    assert ask(server, f"/v1/adapters?name={name.replace('+', '%2b')}", file_of(adapters["A"]), "POST")[0] == 400


def test_an_adapter_that_is_too_large_is_refused(base, adapters, write_adapters, tmp_path, file_of):
    content = file_of(adapters["L"])
    folder = write_adapters(tmp_path / "adapters")
    with running_server.running(base, folder, limits=Limits(adapter_bytes=len(content) - 1)) as server:
        status, body = ask(server, "/v1/adapters/new", content)
        assert (status, body["error"]["code"]) == (413, "request_too_large")
        assert not (folder / "new.safetensors").exists()


def test_a_request_keeps_the_adapter_that_it_began_with(server, client, base, adapters, file_of):
    ask(server, "/v1/adapters/gone", file_of(adapters["B"]))
    options = {"model": "gone", "prompt": PROMPT, "max_tokens": 100, "temperature": 0}
    wanted = client.completions.create(**options).choices[0].text
    stream = client.completions.create(**options, stream=True)
    first = next(iter(stream)).choices[0].text
    assert ask(server, "/v1/adapters/gone", method="DELETE")[0] == 200
    assert first + "".join(each.choices[0].text for each in stream) == wanted


def test_an_upload_of_a_new_kind_is_compiled_before_its_first_request(server, client, base, file_of):
    before = held._bound._cache_size()
    adapter = init_adapter("aligner", base.config, num_tokens=5, start_layer=1)
    assert ask(server, "/v1/adapters/kind", file_of(adapter))[0] == 201
    assert answer(client, "kind") == aj.sample(base, adapter, [PROMPT], max_new_tokens=NEW)[0]
    assert held._bound._cache_size() == before
    assert ask(server, "/v1/adapters/kind", method="DELETE")[0] == 200


def test_a_chat_has_numbers_and_format_of_one_version(server, client, base, adapters, tmp_path, monkeypatch):
    file = tmp_path / "made.safetensors"
    save_adapter(adapters["A"], file, base, prompt_format={"template": "alpaca", "system": None})
    assert ask(server, "/v1/adapters/twin", file.read_bytes())[0] == 201
    save_adapter(adapters["B"], file, base)
    kept, read, replaced = server.service.models.adapters, Adapters.prompt_format, []

    def replaced_after(self, name: str):
        found = read(self, name)
        if not replaced:
            replaced.append(parse_upload(file.read_bytes(), server.service.base))
            kept.register(name, replaced[0])
        return found

    monkeypatch.setattr(Adapters, "prompt_format", replaced_after)
    options = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": NEW, "temperature": 0}
    found = client.chat.completions.create(model="twin", **options).choices[0].message.content
    assert replaced
    assert found == client.chat.completions.create(model="B", **options).choices[0].message.content
    assert ask(server, "/v1/adapters/twin", method="DELETE")[0] == 200


def test_an_adapter_that_cannot_be_served_is_named_at_the_start(base, write_adapters, tmp_path):
    folder = write_adapters(tmp_path / "adapters")
    save_adapter(init_adapter("full", base.config), folder / "F.safetensors", base)
    kept = open_adapters(folder, RecordedBase(base.config, base.fingerprint))
    with pytest.raises(InputError, match=r"adapters/F\.safetensors cannot be served: .* different in the rows"):
        room_for(kept, base, 0, 0)
    (folder / "F.safetensors").unlink()
    assert room_for(kept, base, 0, 0).tokens == 6


def test_an_adapter_with_the_name_of_the_base_is_refused_at_the_start(base, write_adapters, tmp_path):
    folder = write_adapters(tmp_path / "adapters")
    (folder / "A.safetensors").rename(folder / "tiny.safetensors")
    with (
        pytest.raises(InputError, match=r"adapters/tiny\.safetensors has the name of the base"),
        running_server.running(base, folder),
    ):
        pass


def test_faults_of_the_server_are_told_as_such(server, file_of, adapters, monkeypatch):
    content = file_of(adapters["A"])

    def fail(*_, **__):
        raise InputError("the disk is full")

    for attribute in ("register", "delete", "names", "get", "prompt_format"):
        monkeypatch.setattr(server.service.models.adapters._bank, attribute, fail)
    body = json.dumps({"model": "A", "prompt": PROMPT, "messages": [{"role": "user", "content": "Why?"}]}).encode()
    for path, method, sent in (
        ("/v1/adapters/A", "PUT", content),
        ("/v1/adapters/A", "DELETE", b""),
        ("/v1/adapters", "GET", b""),
        ("/v1/models", "GET", b""),
        ("/v1/models/A", "GET", b""),
        ("/v1/completions", "POST", body),
        ("/v1/chat/completions", "POST", body),
    ):
        status, found = ask(server, path, sent, method)
        error = found["error"]
        assert (status, error["type"], error["message"]) == (503, "server_error", "the disk is full"), path


def test_a_file_that_is_replaced_in_the_folder_is_read_again(base, adapters, write_adapters, tmp_path):
    folder = write_adapters(tmp_path / "adapters")
    kept = open_adapters(folder, RecordedBase(base.config, base.fingerprint))
    first = kept.get("A")
    assert kept.get("A").key == first.key
    save_adapter(adapters["B"], folder / "A.safetensors", base)
    second = kept.get("A")
    assert second.key != first.key
    np.testing.assert_array_equal(second.read()["gates_ln"], adapters["B"].trainable["gates_ln"])
    np.testing.assert_array_equal(first.read()["gates_ln"], adapters["A"].trainable["gates_ln"])
    (folder / "A.safetensors").unlink()
    with pytest.raises(KeyError):
        kept.get("A")
