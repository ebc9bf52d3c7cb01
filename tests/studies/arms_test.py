"""aligner_jax/studies/arms.py: arms of the command line."""

import argparse

import pytest

from aligner_jax.model.config import llama_config
from aligner_jax.peft import complete_options
from aligner_jax.studies.arms import ARMS, parse_arm


def test_an_arm_of_the_command_line_has_its_options():
    arm = parse_arm("own_10=aligner,num_tokens=10,gates=token,init_std=0.1,rate=0.03,optim.gate_rate=3")
    assert (arm.name, arm.kind, arm.method, arm.rate) == ("own_10", "own", "aligner", 0.03)
    assert arm.options == {"num_tokens": 10, "gates": "token", "init_std": 0.1}
    assert arm.optim == {"gate_rate": 3}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a=",
        "a=loro",
        "lora_8=lora,rank=8",
        "a b=lora",
        "a=lora,rank",
        "a=lora,rate=x",
        "a=lora,rate=0",
        "a=lora,rate=nan",
        "base=lora",
    ],
)
def test_other_texts_are_refused(text: str):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_arm(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a=lora,rnak=8", r"a\.rnak is not a field"),
        ("a=lora,rank=0", r"a\.rank is 0"),
        ("a=aligner,optim.gate_rat=3", r"a\.optim\.gate_rat is not a field"),
        ("a=aligner,optim.gate_rate=-3", r"a\.optim\.gate_rate is -3"),
        ("a=aligner,optim.name=lyon", r"a\.optim\.name is 'lyon'"),
        ("a=aligner,optim.lr=1", r"optim\.lr is the study's own"),
    ],
)
def test_wrong_options_are_named(text: str, named: str):
    with pytest.raises(argparse.ArgumentTypeError, match=named):
        parse_arm(text)


def test_the_arms_are_valid_for_the_model():
    config = llama_config("smollm2_135m")
    for arm in ARMS.values():
        complete_options(arm.method, config, arm.options)
    assert {arm.kind for arm in ARMS.values()} >= {"aligner", "aligner_sums", "lora", "full"}
