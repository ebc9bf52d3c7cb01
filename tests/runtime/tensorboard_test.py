"""TensorBoard event files: hyperparameters and the config as text."""

from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from aligner_jax.runtime.metrics import MetricsWriter
from aligner_jax.runtime.tensorboard import flat

CONFIG = {"steps": 8, "optim": {"lr": 0.01, "clip": None}, "data": {"path": "a.jsonl", "packing": True}, "sweep": ()}


def events(workdir: Path) -> list[Event]:
    (path,) = workdir.glob("events.out.tfevents.*")
    content, found = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_a_config_is_hyperparameters_and_a_text(tmp_path):
    with MetricsWriter(tmp_path, config=CONFIG) as writer:
        writer.write(1, loss=2.0)
    values = {value.tag: value for event in events(tmp_path) for value in event.summary.value}
    assert set(values) == {
        "_hparams_/experiment", "_hparams_/session_start_info", "config/text_summary", "loss",
    }  # fmt: skip
    content = HParamsPluginData.FromString(
        values["_hparams_/session_start_info"].metadata.plugin_data.content
    ).session_start_info.hparams
    assert content["optim.lr"].number_value == 0.01
    assert content["steps"].number_value == 8
    assert content["data.path"].string_value == "a.jsonl"
    assert content["data.packing"].bool_value is True
    assert b'"lr": 0.01' in values["config/text_summary"].tensor.string_val[0]


def test_fields_without_a_value_are_left_out():
    assert flat(CONFIG) == [("steps", 8), ("optim.lr", 0.01), ("data.path", "a.jsonl"), ("data.packing", True)]
    assert flat({"sweep": {"lr": (0.1, 0.2)}}) == [("sweep.lr", "(0.1, 0.2)")]
