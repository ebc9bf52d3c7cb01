"""Prompts of conversations."""

import dataclasses
from typing import NamedTuple

import pytest

from aligner_jax.data.conversation import choose_format, prompt_ids, render
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


def test_the_ids_are_those_of_the_text(tokenizer: Tokenizer):
    with_bos = dataclasses.replace(tokenizer, add_bos=True)
    for chosen in (PromptFormat("alpaca"), PromptFormat("none")):
        ids = prompt_ids(TURNS, chosen, with_bos)
        assert ids == [tokenizer.bos_id, *tokenizer.encode(render(TURNS, chosen, tokenizer))]
    chat = render(TURNS, PromptFormat("chat"), tokenizer)
    assert prompt_ids(TURNS, PromptFormat("chat"), with_bos) == tokenizer.encode(chat, bos=True)


def test_a_system_message_replaces_the_recorded_one_or_is_refused(tokenizer: Tokenizer):
    turns = [{"role": "system", "content": "Do."}, *TURNS]
    assert render(turns, PromptFormat("chat", "Be."), tokenizer) == render(
        TURNS, PromptFormat("chat", "Do."), tokenizer
    )
    for template in ("alpaca", "none"):
        with pytest.raises(InputError, match=f"of '{template}', which has no place for a system message"):
            render(turns, PromptFormat(template), tokenizer)


@pytest.mark.parametrize("turns", [TURNS[:2], TURNS[1:], [*TURNS, TURNS[0]], [TURNS[0], *TURNS]], ids=str)
@pytest.mark.parametrize("template", ["alpaca", "none"])
def test_other_turns_than_those_of_a_chat_are_refused(turns: list, template: str, tokenizer: Tokenizer):
    roles = ", ".join(turn["role"] for turn in turns)
    with pytest.raises(InputError, match=f"of '{template}', so turns of user and assistant alternate.*are {roles}$"):
        render(turns, PromptFormat(template), tokenizer)


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
    with pytest.raises(InputError, match=r"a was trained with the prompts of .* look at them with: --template"):
        choose_format("auto", None, ours | alpaca, tokenizer)
    with pytest.raises(InputError, match=r"a was trained with the prompts of .*; ask$"):
        choose_format("auto", None, ours | alpaca, tokenizer, remedy="ask")
    with pytest.raises(InputError, match="--system is of the template chat"):
        choose_format("auto", "Hm.", alpaca, tokenizer)


def test_a_base_without_a_chat_template_needs_a_template(tokenizer: Tokenizer):
    plain = dataclasses.replace(tokenizer, chat_template=None)
    with pytest.raises(InputError, match=r"^the base has no chat template; name one: --template=alpaca or none$"):
        choose_format("auto", None, {}, plain)
    with pytest.raises(InputError, match="and no adapter records one; name one"):
        choose_format("auto", None, {"a": Recorded(None)}, plain)
    with pytest.raises(InputError, match=r"^the base has no chat template; ask$"):
        choose_format("auto", None, {}, plain, remedy="ask")
    assert choose_format("alpaca", None, {}, plain) == PromptFormat("alpaca")
