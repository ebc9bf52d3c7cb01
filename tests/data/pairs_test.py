"""Preferences as pairs of documents: their targets, and the handling of pairs that do not fit."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from aligner_jax.data.documents import tokenize_examples
from aligner_jax.data.pairs import tokenize_pairs
from aligner_jax.data.sources import Example, Instruction, Preference
from aligner_jax.data.tokenizer import make_tokenizer
from aligner_jax.data.tokenizer_hf import HFBackend
from aligner_jax.errors import InputError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer with a token per byte."""
    specials = ["<s>", "<|im_end|>", "<|im_start|>"]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = tokenizers.Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.add_special_tokens(specials)
    return make_tokenizer(HFBackend(bytewise), bos_id=0, eos_id=1, pad_id=None, add_bos=False, chat_template=CHATML)


def preference(chosen: str, rejected: str, before: str | None = None, where: str = "p.jsonl:1") -> Example:
    earlier = [] if before is None else [{"role": "user", "content": "hi"}, {"role": "assistant", "content": before}]
    return Example(Preference((*earlier, {"role": "user", "content": "q"}), chosen, rejected), where)


def targets(document, tokenizer) -> str:
    return tokenizer.decode(document["tokens"][document["loss_mask"]].tolist())


def lengths(pair) -> tuple[int, int]:
    return len(pair["chosen"]["tokens"]), len(pair["rejected"]["tokens"])


def tokenize(examples, tokenizer, length=400, **options):
    return tokenize_pairs(examples, tokenizer, "chat", sequence_length=length, **options)


def test_both_documents_begin_with_the_prompt_and_their_answers_are_the_targets(tokenizer):
    (pair,), summary = tokenize([preference("Yes", "No way")], tokenizer)
    for side, answer in (("chosen", "Yes"), ("rejected", "No way")):
        document = pair[side]
        assert tokenizer.decode(document["tokens"].tolist()).endswith(f"assistant\n{answer}")
        assert document["tokens"][document["loss_mask"]].tolist() == [*tokenizer.encode(answer), 1]
        assert document["tokens"].dtype == np.int32
    assert (summary.documents, summary.tokens, summary.targets) == (1, sum(lengths(pair)), 4 + 7)
    assert summary.longest == sum(lengths(pair))
    assert str(summary).startswith("1 pairs, ")


def test_of_several_answers_only_the_last_is_a_target(tokenizer):
    (pair,), _ = tokenize([preference("Yes", "No", before="Hello")], tokenizer)
    assert [targets(pair[side], tokenizer) for side in ("chosen", "rejected")] == ["Yes", "No"]


def test_supervised_training_takes_the_chosen_answer(tokenizer):
    example = preference("Yes", "No")
    (document,), _ = tokenize_examples([example], tokenizer, "chat", sequence_length=400)
    (pair,), _ = tokenize([example], tokenizer)
    assert document["tokens"].tolist() == pair["chosen"]["tokens"].tolist()


def test_the_alpaca_template_takes_one_question(tokenizer):
    (pair,), _ = tokenize_pairs([preference("Yes", "No")], tokenizer, "alpaca", sequence_length=600)
    assert tokenizer.decode(pair["rejected"]["tokens"].tolist()).endswith("### Response:No")
    with pytest.raises(InputError, match=r"p\.jsonl:1: the template 'alpaca' takes one user and one assistant turn"):
        tokenize_pairs([preference("Yes", "No", before="a")], tokenizer, "alpaca", sequence_length=600)


def test_what_is_not_a_preference_is_named(tokenizer):
    said = r"^data\.json:7: a preference .* is needed, and this is an instruction, which config.objective.name='sft' "
    with pytest.raises(InputError, match=said):
        tokenize([Example(Instruction("a", "", "b"), "data.json:7")], tokenizer)


@pytest.mark.parametrize(
    ("packing", "answers", "kept"),
    [
        (True, (10, 10), (10, 10)),
        (True, (60, 10), (50, 10)),
        (True, (10, 60), (10, 50)),
        (True, (60, 60), (30, 30)),
        (True, (60, 31), (30, 30)),
        (False, (60, 10), (60, 10)),
        (False, (70, 90), (60, 60)),
    ],
)
def test_a_pair_that_does_not_fit_is_cut_where_it_is_longer(tokenizer, packing: bool, answers, kept):
    """The prompt and EOS take their share of a row; 60 tokens are left for one answer, or for both together."""
    (base,), _ = tokenize([preference("", "b")], tokenizer)
    frame = lengths(base)[0]
    row = 2 * frame + 60 if packing else frame + 60
    example = preference("a" * answers[0], "b" * answers[1])
    (pair,), summary = tokenize([example], tokenizer, row, packing=packing, overlong="truncate")
    assert lengths(pair) == (frame + kept[0], frame + kept[1])
    assert summary.truncated == (kept != answers)
    (whole,), _ = tokenize([example], tokenizer, 1000)
    for side in ("chosen", "rejected"):
        np.testing.assert_array_equal(pair[side]["tokens"], whole[side]["tokens"][: len(pair[side]["tokens"])])
    if kept != answers:
        both, summary = tokenize([example, preference("", "b")], tokenizer, row, packing=packing, overlong="drop")
        assert (len(both), summary.dropped) == (1, 1)
        pattern = r"p\.jsonl:1: the prompt has \d+ tokens with its chosen answer .* set data\.overlong to"
        with pytest.raises(InputError, match=pattern):
            tokenize([example], tokenizer, row, packing=packing)


def test_a_pair_of_which_nothing_of_an_answer_is_left_is_left_out(tokenizer):
    (base,), _ = tokenize([preference("", "b")], tokenizer)
    prompt = lengths(base)[0] - 1
    options = {"packing": False, "overlong": "truncate"}
    pairs, summary = tokenize([preference("a", "b")], tokenizer, prompt + 1, **options)
    assert (len(pairs), summary.truncated, summary.without_targets) == (1, 1, 0)
    with pytest.raises(InputError, match=r"none of the 1 preferences is left: 0 are longer .* of 1 nothing"):
        tokenize([preference("a", "b")], tokenizer, prompt, **options)
    assert tokenize([], tokenizer)[0] == []


def test_pairs_that_are_the_same_tokens_once_they_are_cut_are_left_out(tokenizer):
    """The gradient of such a pair is rounding alone, which Adam would scale to full steps."""
    alike, other = preference("a" * 90 + "b", "a" * 90 + "c"), preference("a" * 90, "b" * 90)
    (frame,), _ = tokenize([preference("x", "y")], tokenizer)
    for packing, row in ((False, lengths(frame)[0] + 60), (True, 2 * lengths(frame)[0] + 120)):
        pairs, summary = tokenize([alike, other], tokenizer, row, packing=packing, overlong="truncate")
        assert (len(pairs), summary.documents, summary.equal, summary.truncated) == (1, 1, 1, 1)
        assert str(summary).endswith("; 1 dropped because both answers are the same tokens")
        assert len(tokenize([alike], tokenizer, 1000)[0]) == 1
        with pytest.raises(InputError, match=r"none of the 1 preferences is left: .* of 1 both answers are the same"):
            tokenize([alike], tokenizer, row, packing=packing, overlong="truncate")
    # Answers of different lengths differ: the loss compares the longer one's rest.
    pairs, summary = tokenize([preference("a" * 90, "a" * 50)], tokenizer, 1000)
    assert (len(pairs), summary.equal) == (1, 0)


@pytest.mark.parametrize("packing", [True, False])
def test_documents_of_a_pair_fit_the_context(tokenizer, packing):
    example = preference("a" * 60, "b" * 10)
    (whole,), _ = tokenize([example], tokenizer, 1000, packing=packing)
    longest = max(lengths(whole))
    (same,), _ = tokenize([example], tokenizer, 1000, packing=packing, context_length=longest)
    assert lengths(same) == lengths(whole)
    options = {"packing": packing, "context_length": longest - 20}
    with pytest.raises(
        InputError, match=rf"^p.jsonl:1: a document of the pair has {longest} tokens, and the base's co"
    ):
        tokenize([example], tokenizer, 1000, **options)
    (cut,), summary = tokenize([example], tokenizer, 1000, overlong="truncate", **options)
    assert lengths(cut) == (longest - 20, lengths(whole)[1])
    assert summary.truncated == 1
