import json
from types import SimpleNamespace

import pytest

from aligner_jax.errors import InputError
from aligner_jax.runtime import agreement
from aligner_jax.runtime.config import as_dict, parse_config

SETTINGS = {"base": {"path": "m", "dtype": "float32"}, "data": {"path": "d"}, "steps": 1}
CONFIG = parse_config(SETTINGS)


@pytest.fixture(autouse=True)
def not_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement.distributed, "is_alone", lambda: False)


@pytest.mark.parametrize("name", ["Python", "aligner_jax", "jax", "numpy", "jax_enable_x64", "dtype of the base"])
def test_processes_in_different_environments_say_what_differs(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agreement, "exchange", lambda text: [text, text])
    agreement.check_same_config(CONFIG)

    def exchange(text: str) -> list[str]:
        other = json.loads(text)
        assert name in other["installed"]
        other["installed"][name] = "another"
        return [text, json.dumps(other)]

    monkeypatch.setattr(agreement, "exchange", exchange)
    sentence = rf"^process 1 of 2 runs in another environment \({name} is 'another' there and '.*' on process 0\): all"
    with pytest.raises(InputError, match=sentence):
        agreement.check_same_config(CONFIG)


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({"steps": 2}, "steps is 2 there and 1 on process 0"),
        (
            {"seed": 7, "adapter": {"init_from": "a.safetensors"}},
            "adapter.init_from is 'a.safetensors' there and None on process 0; seed is 7 there and 0 on process 0",
        ),
    ],
)
def test_processes_with_different_configs_say_in_what(changed: dict, fields: str, monkeypatch: pytest.MonkeyPatch):
    config = parse_config({**SETTINGS, **changed})

    def exchange(text: str) -> list[str]:
        return [text, text, json.dumps({**json.loads(text), "config": as_dict(config)})]

    monkeypatch.setattr(agreement, "exchange", exchange)
    with pytest.raises(InputError) as caught:
        agreement.check_same_config(CONFIG)
    began, ended = "was started with another configuration", "give all processes the same command and config file"
    assert str(caught.value) == f"process 2 of 3 {began} ({fields}): {ended}"


def test_a_failure_of_one_process_ends_all(monkeypatch: pytest.MonkeyPatch):
    others = ["", ""]
    monkeypatch.setattr(agreement, "exchange", lambda text: [text, *others])
    with agreement.failing_together():
        pass
    with pytest.raises(InputError, match=r"^no data$"), agreement.failing_together():
        raise InputError("no data")
    others[1] = "d.jsonl does not exist"
    with pytest.raises(InputError, match=r"^process 2 of 3 cannot go on: d.jsonl does not exist$"):  # noqa: SIM117
        with agreement.failing_together():
            pass
    with pytest.raises(InputError, match=r"^no data$"), agreement.failing_together():
        raise InputError("no data")


def test_a_process_alone_reads_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agreement.distributed, "is_alone", lambda: True)
    monkeypatch.setattr(agreement, "_installed", lambda config: pytest.fail("files were read"))
    agreement.check_same_config(CONFIG)


def test_processes_with_devices_of_another_number_are_refused(monkeypatch: pytest.MonkeyPatch):
    devices = [SimpleNamespace(process_index=process) for process in (0, 1, 1)]
    monkeypatch.setattr(agreement.jax, "devices", lambda: devices)
    with pytest.raises(InputError, match=r"^process 1 of 2 has 2 devices and process 0 has 1: all processes need as"):
        agreement.check_same_config(CONFIG)


def test_a_byte_of_a_base_changes_its_digest(tmp_path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "model.safetensors"
    content = bytearray(2**20)
    file.write_bytes(content)
    was = agreement.files_digest(tmp_path)
    for at in (0, 300_001, 700_003, 2**20 - 1):
        file.write_bytes(content[:at] + b"\1" + content[at + 1 :])
        assert agreement.files_digest(tmp_path) != was
    monkeypatch.setattr(agreement, "_READ_WHOLE", 1000)
    file.write_bytes(content)
    parts = agreement.files_digest(tmp_path)
    file.write_bytes(content[:-1] + b"\1")
    assert agreement.files_digest(tmp_path) != parts
