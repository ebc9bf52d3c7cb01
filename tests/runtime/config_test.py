import dataclasses
import json
import re

import pytest
from ml_collections import ConfigDict

from aligner_jax.errors import InputError
from aligner_jax.runtime.config import AdapterConfig, TrainConfig, as_dict, parse_config
from aligner_jax.runtime.same_run import check_same_run, save_config

REQUIRED = {"base": {"path": "model"}, "data": {"path": "train.json"}, "steps": 10}


def config(**sections):
    merged = {name: dict(value) if isinstance(value, dict) else value for name, value in REQUIRED.items()}
    for name, value in sections.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return merged


def refusal(**sections):
    with pytest.raises(InputError) as caught:
        parse_config(config(**sections))
    return str(caught.value)


def test_fields_left_out_take_their_defaults():
    parsed = parse_config(config())
    assert (parsed.base.dtype, parsed.data.batch_size, parsed.data.sequence_length) == ("auto", 64, 512)
    assert (parsed.optim.accumulate, parsed.optim.clip, parsed.adapter) == (1, None, AdapterConfig())
    assert hash(parsed) == hash(parse_config(config()))


def test_config_dicts_and_their_references_are_read():
    source = ConfigDict(config(optim={"lr": 1e-3}))
    source.report = ConfigDict({"max_new_tokens": source.get_ref("steps") * 2})
    assert parse_config(source).report.max_new_tokens == 20


def test_other_adapter_keys_are_the_methods_options():
    parsed = parse_config(config(adapter={"method": "lora", "rank": 4, "targets": ("q", "v")}))
    assert parsed.adapter == AdapterConfig(method="lora", options={"rank": 4, "targets": ("q", "v")})
    assert parse_config(as_dict(parsed)) == parsed


def test_the_names_of_a_files_fields_are_a_section_of_their_own(tmp_path):
    names = {"instruction": "q", "output": "a"}
    parsed = parse_config(ConfigDict(config(data={"format": "fields", "fields": names})))
    assert parsed.data.fields == names
    assert hash(parsed) is not None
    save_config(parsed, tmp_path)
    check_same_run(parsed, tmp_path)
    assert parse_config(json.loads((tmp_path / "config.json").read_text())) == parsed
    (tmp_path / "adapter.safetensors").touch()
    with pytest.raises(InputError, match=r"data\.fields\.output is 'b' and was 'a'"):
        check_same_run(changed(parsed, "data", fields={**names, "output": "b"}), tmp_path)


def test_an_adapter_to_begin_with_is_not_an_option():
    parsed = parse_config(config(adapter={"init_from": "runs/a/adapter.safetensors", "num_tokens": 2}))
    assert parsed.adapter.init_from == "runs/a/adapter.safetensors"
    assert parsed.adapter.options == {"num_tokens": 2}
    assert parse_config(as_dict(parsed)) == parsed
    assert refusal(adapter={"init_from": 3}) == "config.adapter.init_from is 3, but should be text"


def test_whole_numbers_serve_as_numbers_but_not_the_reverse():
    assert parse_config(config(optim={"lr": 1, "clip": 2})).optim.clip == 2.0
    assert refusal(steps=10.0) == "config.steps is 10.0, but should be a whole number"
    assert refusal(steps=True) == "config.steps is True, but should be a whole number"
    assert refusal(data={"packing": 1}) == "config.data.packing is 1, but should be True or False"
    assert refusal(base={"path": 7}) == "config.base.path is 7, but should be text"
    assert refusal(optim=3) == "config.optim is 3, but should be a section with fields of its own"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optim": {"learning_rate": 1}}, "config.optim.learning_rate is not a field; did you mean config.optim.lr?"),
        ({"optim": {"lrr": 1}}, "config.optim.lrr is not a field; did you mean config.optim.lr?"),
        ({"sead": 1}, "config.sead is not a field; did you mean config.seed?"),
        ({"report": {"zzz": 1}}, "config.report.zzz is not a field; there are config.report.form, "),
    ],
)
def test_unknown_fields_are_refused_with_the_nearest_name(sections, message):
    assert refusal(**sections).startswith(message)


@pytest.mark.parametrize("field", ["base.path", "data.path", "steps"])
def test_missing_fields_are_named(field):
    source = ConfigDict(REQUIRED)
    with source.ignore_type():
        source.update_from_flattened_dict({field: None})
    with pytest.raises(InputError, match=rf"^config\.{re.escape(field)} is not set; .*--config\.{re.escape(field)}="):
        parse_config(source)
    with pytest.raises(InputError, match=r"^config\.base\.path is not set"):
        parse_config({})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"steps": 0}, "config.steps is 0, but should be 1 or more"),
        ({"optim": {"b2": 1.0}}, "config.optim.b2 is 1.0, but should be less than 1"),
        ({"mesh": {"data": 0}}, "config.mesh.data is 0, but should be -1 or more, and not 0"),
        ({"seed": 2**63}, "config.seed is 9223372036854775808, but should be less than 4294967296"),
        ({"sweep": {"seed": [0, 2**32]}}, "config.sweep.seed[1] is 4294967296, but should be less than 4294967296"),
        (
            {"sweep": {"seed": [0, 1]}, "adapter": {"init_from": "a.safetensors"}},
            "config.sweep.seed and config.adapter.init_from are both set, but a saved adapter has the same initial "
            "values for every seed",
        ),
        ({"optim": {"clip": 0}}, "config.optim.clip is 0.0, but should be greater than 0"),
        ({"optim": {"lr": float("nan")}}, "config.optim.lr is nan, but should be finite"),
        ({"optim": {"name": "adam"}}, "config.optim.name is 'adam', but should be one of adamw, lion, muon"),
        *(
            (
                {"optim": {"state_dtype": "bfloat16", name: value}},
                f"config.optim.{name} is {value!r}, but config.optim.state_dtype 'bfloat16' is AdamW as the authors "
                "ran it: set 'float32'",
            )
            for name, value in (("name", "lion"), ("gate_rate", 3.0), ("decay_on", "tokens"))
        ),
        (
            {"optim": {"schedule": "linear"}},
            "config.optim.schedule is 'linear', but should be one of constant, cosine, warmup_constant, paper_as_run",
        ),
        (
            {"data": {"batch_size": 10}, "optim": {"accumulate": 4}},
            "config.data.batch_size is 10, which config.optim.accumulate, 4, does not divide",
        ),
        (
            {"optim": {"warmup_steps": 5}},
            "config.optim.warmup_steps is 5, but config.optim.schedule 'constant' has no warm-up; "
            "'warmup_constant' does",
        ),
        (
            {"optim": {"schedule": "paper_as_run"}},
            "config.optim.schedule 'paper_as_run' needs config.optim.warmup_steps (the paper's is 12500)",
        ),
        (
            {"data": {"format": "fields"}},
            "config.data.format is 'fields', but config.data.fields names none of the file's fields",
        ),
        (
            {"data": {"fields": {"output": "a"}}},
            "config.data.fields is set, but config.data.format is 'auto'; only 'fields' takes it",
        ),
        ({"data": {"format": "fields", "fields": {"output": 3}}}, "config.data.fields.output is 3, but should be text"),
        ({"data": {"fields": "a"}}, "config.data.fields is 'a', but should be a section"),
        ({"data": {"system": "Hi"}}, "config.data.system is set, but template 'alpaca' has no system prompt"),
        (
            {"base": {"quantization": "int3"}},
            "config.base.quantization is 'int3', but should be one of none, int8, int4",
        ),
        (
            {"base": {"quantization": "int8", "group_size": 64}},
            "config.base.group_size is 64, but config.base.quantization 'int8' has no groups; 'int4' does",
        ),
        (
            {"base": {"quantization": "int4", "group_size": 1}},
            "config.base.group_size is 1, but should be 2 or more",
        ),
    ],
)
def test_impossible_values_are_refused(sections, message):
    assert refusal(**sections) == message


def test_config_json_is_itself_a_config(tmp_path):
    parsed = parse_config(config(adapter={"num_tokens": 10}, optim={"lr": 1e-3}))
    save_config(parsed, tmp_path / "run")
    assert parse_config(json.loads((tmp_path / "run/config.json").read_text())) == parsed


def changed(parsed: TrainConfig, section: str, **values) -> TrainConfig:
    return dataclasses.replace(parsed, **{section: dataclasses.replace(getattr(parsed, section), **values)})


def test_a_run_goes_on_with_its_own_configuration_only(tmp_path):
    old = parse_config(config(adapter={"targets": ("q", "v")}))
    check_same_run(old, tmp_path)
    save_config(old, tmp_path)
    longer = dataclasses.replace(changed(old, "checkpoint", every=7), steps=99, log_every=1, eval_every=5)
    check_same_run(changed(longer, "report", form="json"), tmp_path)
    check_same_run(changed(changed(old, "stall", seconds=None), "nonfinite", max_skipped=1), tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError) as caught:
        check_same_run(changed(changed(old, "optim", lr=1e-3), "adapter", options={"rank": 2}), tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds a run with another configuration (adapter.rank is 2 and was None; adapter.targets is None "
        "and was ['q', 'v']; optim.lr is 0.001 and was 0.009): continue it with its own, or choose another --workdir"
    )


def test_the_length_of_a_cosine_cannot_change_halfway(tmp_path):
    old = parse_config(config(optim={"schedule": "cosine"}))
    save_config(old, tmp_path)
    (tmp_path / "adapter.safetensors").touch()
    with pytest.raises(InputError, match="steps is 99 and was 10"):
        check_same_run(dataclasses.replace(old, steps=99), tmp_path)


@pytest.mark.parametrize("kept", [None, "checkpoints/5/x", "metrics.jsonl", "reference_train.npz", "report.json"])
def test_a_run_that_ended_before_its_first_step_is_replaced(tmp_path, kept):
    old = parse_config(config())
    save_config(old, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "wandb").mkdir()
    for name in (
        "inputs.json",
        "kernels.json",
        "wandb.json",
        "wandb/log",
        "metrics.jsonl",
        "events.out.tfevents.1.host",
        ".metrics.jsonl.abcdefgh",
    ):
        (tmp_path / name).touch()
    new = changed(old, "optim", lr=1e-3)
    if kept is None:
        assert check_same_run(new, tmp_path) == new
        return
    (tmp_path / kept).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / kept).write_text("a line\n")
    with pytest.raises(InputError, match=r"holds a run with another configuration \(optim\.lr is"):
        check_same_run(new, tmp_path)


def test_a_config_of_an_evaluation_is_named_as_such():
    with pytest.raises(InputError, match=r"^the config is one of an evaluation: give the config of a training, such"):
        parse_config({"base": {"path": "m"}, "evaluation": {"name": "harness"}})


@pytest.mark.parametrize("content", [b'{"base": {"pa', b"[]", b'{"base": {"path": 3}}'])
def test_a_damaged_config_json_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path / 'config.json'))} cannot be used: "):
        check_same_run(parse_config(config()), tmp_path)


def test_a_run_that_began_without_a_tracker_resumes_with_one(tmp_path):
    before = as_dict(parse_config(config()))
    assert before.pop("metrics") == {"wandb": None}
    (tmp_path / "config.json").write_text(json.dumps(before))
    tracked = parse_config(config(metrics={"wandb": "trees"}))
    assert check_same_run(tracked, tmp_path).metrics.wandb == "trees"
    assert refusal(metrics={"wandb": 3}) == "config.metrics.wandb is 3, but should be text"
