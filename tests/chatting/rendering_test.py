"""Prompts of conversations."""

import dataclasses
from typing import NamedTuple

import pytest

from aligner_jax.chatting.rendering import choose_format, render
from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.data.tokenizer_files import load_tokenizer
from aligner_jax.errors import InputError

TURNS = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
    {"role": "user", "content": "Why?"},
]


class Recorded(NamedTuple):
    """An adapter's file."""

    prompt_format: PromptFormat | None


@pytest.fixture
def tokenizer(tiny_model) -> Tokenizer:
    loaded = load_tokenizer(tiny_model)
    assert loaded is not None
    return loaded


@pytest.mark.parametrize(
    "chosen", [PromptFormat("chat"), PromptFormat("chat", "Be."), PromptFormat("alpaca"), PromptFormat("none")], ids=str
)
def test_a_first_question_has_the_prompt_of_training(chosen: PromptFormat, tokenizer: Tokenizer):
    assert render(TURNS[:1], chosen, tokenizer) == chosen.render("Who?", tokenizer)


def test_later_questions_have_the_conversation_before_them(tokenizer: Tokenizer):
    assert render(TURNS, PromptFormat("chat", "Be."), tokenizer) == (
        "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    first = PromptFormat("alpaca").render("Who?", tokenizer)
    assert render(TURNS, PromptFormat("alpaca"), tokenizer) == (
        f"{first}Me.\n\n### Instruction:\nWhy?\n\n### Response:"
    )
    assert render(TURNS, PromptFormat("none"), tokenizer) == "Who?\nMe.\nWhy?"


def test_the_format_is_the_recorded_one_or_the_chat_template(tokenizer: Tokenizer):
    ours, foreign = {"a": Recorded(PromptFormat("chat", "Be."))}, {"a": Recorded(None)}
    alpaca = {"b": Recorded(PromptFormat("alpaca"))}
    assert choose_format("auto", None, {}, tokenizer) == PromptFormat("chat")
    assert choose_format("auto", "Hm.", {}, tokenizer) == PromptFormat("chat", "Hm.")
    assert choose_format("auto", None, foreign, tokenizer) == PromptFormat("chat")
    assert choose_format("auto", None, ours, tokenizer) == PromptFormat("chat", "Be.")
    assert choose_format("auto", "Hm.", ours, tokenizer) == PromptFormat("chat", "Hm.")
    assert choose_format("auto", None, alpaca, tokenizer) == PromptFormat("alpaca")
    assert choose_format("none", None, ours, tokenizer) == PromptFormat("none")
    with pytest.raises(InputError, match="a was trained with the prompts of"):
        choose_format("auto", None, ours | alpaca, tokenizer)
    with pytest.raises(InputError, match="--system is of the template chat"):
        choose_format("auto", "Hm.", alpaca, tokenizer)


def test_a_base_without_a_chat_template_needs_a_template(tokenizer: Tokenizer):
    plain = dataclasses.replace(tokenizer, chat_template=None)
    with pytest.raises(InputError, match=r"^the base has no chat template; name one: --template=alpaca or none$"):
        choose_format("auto", None, {}, plain)
    with pytest.raises(InputError, match="and no adapter records one; name one"):
        choose_format("auto", None, {"a": Recorded(None)}, plain)
    assert choose_format("alpaca", None, {}, plain) == PromptFormat("alpaca")
