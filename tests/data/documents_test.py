import dataclasses
import re

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from aligner_jax.data.documents import make_document, tokenize_examples
from aligner_jax.data.sources import Conversation, Example, Instruction
from aligner_jax.data.templates import render_example_prompt
from aligner_jax.data.tokenizer import make_tokenizer
from aligner_jax.data.tokenizer_hf import HFBackend
from aligner_jax.errors import InputError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITHOUT_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def make(template=None, add_bos=True, prefix_space=False):
    """Returns a tokenizer with a token per byte, except for `:{`: one token unless its halves are kept apart."""
    specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), ":{"]
    model = models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[(":", "{")])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return make_tokenizer(
        HFBackend(tokenizer), bos_id=0, eos_id=1, pad_id=None, add_bos=add_bos, chat_template=template
    )


PINE = Example(Instruction("Name a tree.", "", "Pine"), "data.json:2")
NOTHING = Example(Instruction("Say nothing.", "", ""), "data.json:6")
OBJECT = Example(Instruction("Name a tree.", "", "{}"), "data.json:9")
TALK = Example(
    Conversation(tuple({"role": r, "content": c} for r, c in [("user", "a"), ("assistant", "b")] * 2)), "data.jsonl:1"
)


def targets(document, tokenizer):
    """Returns the targets as text, special tokens as names."""
    ids = document["tokens"][document["loss_mask"]].tolist()
    return "".join(tokenizer.backend.token(i) for i in ids)


def one(example, tokenizer, template="alpaca", **options):
    (document,), _ = tokenize_examples([example], tokenizer, template, sequence_length=400, **options)
    assert document["tokens"].dtype == np.int32
    assert document["loss_mask"].dtype == bool
    return document


def test_bos_prompt_answer_eos():
    tokenizer = make()
    document = one(PINE, tokenizer)
    prompt = tokenizer.encode(render_example_prompt(PINE, tokenizer, "alpaca"), bos=True)
    assert document["tokens"].tolist() == [*prompt, *tokenizer.encode("Pine"), tokenizer.eos_id]
    assert document["loss_mask"].tolist() == [False] * len(prompt) + [True] * 5
    assert one(PINE, make(add_bos=False))["tokens"].tolist() == document["tokens"].tolist()[1:]


def test_an_answer_needs_an_end():
    tokenizer = dataclasses.replace(make(), eos_id=None)
    with pytest.raises(InputError, match=r"^data.json:2: the answer would have no end, .* name no EOS token"):
        one(PINE, tokenizer)


def test_tokens_that_the_model_has_not_are_named():
    tokenizer = make()
    document = one(PINE, tokenizer)
    largest = int(document["tokens"].max())
    assert one(PINE, dataclasses.replace(tokenizer, num_embeddings=largest + 1))["tokens"].tolist() == list(
        document["tokens"]
    )
    name = re.escape(repr(tokenizer.backend.token(largest)))
    with pytest.raises(
        InputError,
        match=rf"^data.json:2: the text has the token {largest} \({name}\), but the base has embeddings of {largest:,} "
        rf"tokens only and its tokenizer has {tokenizer.vocab_size:,}: ",
    ):
        one(PINE, dataclasses.replace(tokenizer, num_embeddings=largest))


def test_an_end_that_the_model_has_not_is_named():
    tokenizer = dataclasses.replace(make(), eos_id=399, num_embeddings=399)
    with pytest.raises(InputError, match=r"the text has the token 399 \("):
        one(NOTHING, tokenizer)


def test_an_empty_answer_is_an_eos():
    tokenizer = make()
    assert targets(one(NOTHING, tokenizer), tokenizer) == "</s>"


def test_no_token_spans_prompt_and_answer():
    tokenizer = make()
    joint = tokenizer.encode(render_example_prompt(OBJECT, tokenizer, "alpaca") + "{}")
    assert tokenizer.backend.token(joint[-2]) == ":{"
    document = one(OBJECT, tokenizer)
    prompt = tokenizer.encode(render_example_prompt(OBJECT, tokenizer, "alpaca"), bos=True)
    assert document["tokens"].tolist()[: len(prompt)] == prompt
    assert targets(document, tokenizer) == "{}</s>"


def test_no_space_comes_between_prompt_and_answer():
    tokenizer = make(prefix_space=True)
    assert tokenizer.backend.token(tokenizer.encode("Pine")[0]) == "Ġ"
    assert targets(one(PINE, tokenizer), tokenizer) == "Pine</s>"


def test_chat_turns_end_with_their_own_token():
    tokenizer = make(CHATML, add_bos=False)
    document = one(TALK, tokenizer, "chat")
    assert targets(document, tokenizer) == "b<|im_end|>b<|im_end|>"
    assert document["tokens"][-1] == 3


def test_the_last_answer_alone_may_count():
    tokenizer = make(CHATML, add_bos=False)
    document = make_document(TALK, tokenizer, "chat", loss_on="last_answer")
    assert targets(document, tokenizer) == "b<|im_end|>"
    assert document["tokens"].tolist() == one(TALK, tokenizer, "chat")["tokens"].tolist()


def test_a_chat_template_without_end_token_gets_eos():
    tokenizer = make(WITHOUT_END, add_bos=False)
    assert targets(one(TALK, tokenizer, "chat"), tokenizer).endswith("bĊ</s>")


def test_an_empty_answer_after_a_prompt_that_ends_like_an_answer():
    silent = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'user' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    example = Example(Conversation(({"role": "user", "content": "a"}, {"role": "assistant", "content": ""})), "x:1")
    document = one(example, make(silent, add_bos=False), "chat")
    assert document["tokens"].tolist()[1:] == [1, 1]
    assert document["loss_mask"].tolist() == [False, False, True]


def test_loss_on_everything():
    assert one(PINE, make(), loss_on="all")["loss_mask"].all()


def test_examples_longer_than_a_row():
    tokenizer = make()
    length = len(one(PINE, tokenizer)["tokens"])
    whole, summary = tokenize_examples([PINE], tokenizer, "alpaca", sequence_length=length)
    assert summary.truncated == summary.dropped == 0

    options = {"sequence_length": length - 2}
    with pytest.raises(InputError, match=rf"data\.json:2: the example has {length} tokens and a row {length - 2}"):
        tokenize_examples([NOTHING, PINE], tokenizer, "alpaca", **options)
    documents, summary = tokenize_examples([NOTHING, PINE], tokenizer, "alpaca", overlong="drop", **options)
    assert (len(documents), summary.documents, summary.dropped) == (1, 1, 1)
    documents, summary = tokenize_examples([NOTHING, PINE], tokenizer, "alpaca", overlong="truncate", **options)
    assert summary.truncated == 1
    assert documents[1]["tokens"].tolist() == whole[0]["tokens"].tolist()[:-2]
    assert targets(documents[1], tokenizer) == "Pin"


def test_an_example_cut_before_its_answer_is_left_out():
    documents, summary = tokenize_examples([NOTHING, PINE], make(), "alpaca", sequence_length=160, overlong="truncate")
    assert len(documents) + summary.without_targets == 2
    with pytest.raises(InputError, match="none of the 1 examples is left"):
        tokenize_examples([PINE], make(), "alpaca", sequence_length=20, overlong="truncate")
    options = {"overlong": "truncate", "loss_on": "all"}
    _, summary = tokenize_examples([PINE], make(), "alpaca", sequence_length=20, **options)
    assert (summary.truncated, summary.targets) == (1, 20)
    with pytest.raises(InputError, match="none of the 1 examples is left"):
        tokenize_examples([PINE], make(), "alpaca", sequence_length=1, **options)


def test_no_examples_are_no_documents():
    documents, summary = tokenize_examples([], make(), "alpaca", sequence_length=400)
    assert (documents, summary.documents, summary.longest, summary.target_share) == ([], 0, 0, 0)


def test_the_summary_counts():
    tokenizer = make()
    documents, summary = tokenize_examples([PINE, NOTHING], tokenizer, "alpaca", sequence_length=400)
    lengths = [len(document["tokens"]) for document in documents]
    assert (summary.tokens, summary.targets, summary.longest) == (sum(lengths), 6, max(lengths))
    assert summary.mean_tokens == sum(lengths) / 2
    assert summary.target_share == 6 / sum(lengths)
    assert str(summary).startswith(f"2 documents, {sum(lengths)} tokens (mean ")


SYSTEM_DROPPED = "{% for m in messages if m['role'] in ('user', 'assistant') %}" + WITHOUT_END.partition("%}")[2]


def test_documents_longer_than_the_context_are_refused_cut_or_dropped():
    """A row may be longer than the context, as long as no document in it is."""
    tokenizer = make()
    length = len(one(PINE, tokenizer)["tokens"])
    options = {"sequence_length": 4 * length}
    whole, _ = tokenize_examples([PINE] * 4, tokenizer, "alpaca", context_length=length, **options)
    assert [len(document["tokens"]) for document in whole] == [length] * 4
    with pytest.raises(
        InputError, match=rf"^data.json:2: the example has {length} tokens, and the base's context 100 "
    ):
        tokenize_examples([PINE], tokenizer, "alpaca", context_length=100, **options)
    (cut,), summary = tokenize_examples(
        [PINE], tokenizer, "alpaca", context_length=length - 2, overlong="truncate", **options
    )
    assert (len(cut["tokens"]), summary.truncated) == (length - 2, 1)
    with pytest.raises(InputError, match="none of the 1 examples is left: 1 are longer than 100 tokens"):
        tokenize_examples([PINE], tokenizer, "alpaca", context_length=100, overlong="drop", **options)


def test_a_template_that_leaves_a_turn_out_is_refused():
    example = dataclasses.replace(
        TALK, record=Conversation(({"role": "developer", "content": " Be kind. "}, *TALK.messages()))
    )
    assert one(example, make(CHATML), "chat")
    tokenizer = make(SYSTEM_DROPPED, add_bos=False)
    assert one(TALK, tokenizer, "chat")
    with pytest.raises(InputError, match=r"^data.jsonl:1: the template leaves out what 'developer' says: "):
        one(example, tokenizer, "chat")
    with pytest.raises(InputError, match=r"^data.jsonl:1: the template leaves out what 'system' says: "):
        one(TALK, tokenizer, "chat", system="Be kind.")
