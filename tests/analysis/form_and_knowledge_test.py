"""Form and knowledge: the kind of each token of an answer, and the kinds whose loss an adapter lowers."""

import jax
import numpy as np
import pytest

from aligner_jax.analysis.form_and_knowledge import KINDS, Targets, by_place, changes, classify, target_losses
from aligner_jax.data.documents import Document, tokenize_examples
from aligner_jax.data.sources import Conversation, Example, Instruction
from aligner_jax.data.tokenizer_files import load_tokenizer
from aligner_jax.errors import InputError
from aligner_jax.peft import apply, init_adapter
from aligner_jax.weights.base import load_base

WORDS = ["Ice", "Rain", "Gold", "Milk", "Wood", "Salt", "Wine", "Sand", "Corn", "Silk"]


def _documents(tokenizer, answers):
    examples = [Example(Instruction("Name one.", "", answer), "here") for answer in answers]
    return tokenize_examples(examples, tokenizer, "chat", sequence_length=256)[0]


def _kinds(targets: Targets, documents, tokenizer) -> dict[str, set[str]]:
    """Returns the texts of the tokens of each kind."""
    tokens = [int(i) for d in documents for i, counts in zip(d["tokens"], d["loss_mask"], strict=True) if counts]
    texts = [tokenizer.decode([i]) or tokenizer.backend.token(i) for i in tokens]
    return {kind: {t for t, k in zip(texts, targets.kind_x, strict=True) if k == n} for n, kind in enumerate(KINDS)}


def test_every_token_is_of_one_kind(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    answers = [f'{{"topic": "{word.lower()}", "answer": "7 of {word}."}}' for word in WORDS]
    documents = _documents(tokenizer, answers)
    targets = classify(documents, tokenizer, opening=2)
    found = _kinds(targets, documents, tokenizer)
    assert {"<|im_end|>"} <= found["marks"]
    assert not any(c.isalnum() for text in found["marks"] - {"<|im_end|>"} for c in text)
    assert found["common words"]
    assert all(sum(text in answer for answer in answers) >= 5 for text in found["common words"])
    assert any("7" in text for text in found["content"])
    assert not any(c.isdigit() for text in found["common words"] for c in text)
    assert np.array_equal(np.bincount(targets.document_x[targets.kind_x == 0]), [2] * 10)
    assert (targets.place_x[targets.kind_x == 0] < 2).all()
    assert len(targets.kind_x) == sum(int(d["loss_mask"].sum()) for d in documents)


def test_few_answers_have_no_common_words(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    documents = _documents(tokenizer, ["The same words."] * 7)
    assert KINDS.index("common words") not in classify(documents, tokenizer, opening=1).kind_x
    documents = _documents(tokenizer, ["The same words."] * 8)
    assert KINDS.index("content") not in classify(documents, tokenizer, opening=1).kind_x


@pytest.mark.parametrize(("count", "common"), [(3, False), (4, True)])
def test_words_of_half_of_the_answers_are_common(tiny_model, count, common):
    tokenizer = load_tokenizer(tiny_model)
    documents = _documents(tokenizer, ["The same words."] * count + ["?"] * (8 - count))
    targets = classify(documents, tokenizer, opening=1)
    kinds = {KINDS[kind] for kind in targets.kind_x[targets.document_x == 0]}
    assert kinds == {"opening", "marks", "common words" if common else "content"}


def test_every_answer_of_a_conversation_has_an_opening(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    turns = ("user", "First?"), ("assistant", "One thing here."), ("user", "Then?"), ("assistant", "Another thing.")
    messages = tuple({"role": role, "content": content} for role, content in turns)
    documents, _ = tokenize_examples([Example(Conversation(messages), "here")], tokenizer, "chat", sequence_length=256)
    targets = classify(documents, tokenizer, opening=1)
    assert (targets.place_x == 0).sum() == 2
    assert (targets.kind_x == 0).tolist() == (targets.place_x == 0).tolist()


def test_losses_are_the_models_own(tiny_model, randomized):
    base = load_base(tiny_model)
    documents = _documents(base.tokenizer, [f"{word}, {'very ' * i}{word}." for i, word in enumerate(WORDS)])
    adapter = randomized(init_adapter("aligner", base.config, num_tokens=2))
    losses_x = target_losses(base.params, adapter, documents, config=base.config)
    targets = classify(documents, base.tokenizer, opening=2)
    assert len(losses_x) == len(targets.kind_x)
    for number in (0, 9):
        tokens_t = documents[number]["tokens"]
        logits_tv = apply(base.params, adapter, tokens_t[None], config=base.config)[0]
        log_probs_t = np.asarray(jax.nn.log_softmax(logits_tv))[np.arange(len(tokens_t) - 1), tokens_t[1:]]
        of_document = losses_x[targets.document_x == number]
        np.testing.assert_allclose(of_document, -log_probs_t[documents[number]["loss_mask"][1:]], rtol=1e-5)


def test_a_change_of_form_is_told_from_one_of_knowledge():
    document_x, place_x = np.repeat(np.arange(20), 4), np.tile(np.arange(4), 20)
    kind_x = np.tile([0, 1, 3, 3], 20)
    base_x = np.full(80, 2.0)
    adapted_x = base_x - np.where(kind_x == 0, 1.5, 0) + np.where(kind_x == 3, 0.25, 0)
    found = changes(Targets(document_x, place_x, kind_x), base_x, adapted_x)
    form, knowledge, opening = found["form"], found["knowledge"], found["opening"]
    assert form
    assert knowledge
    assert opening
    assert found["all"]
    assert found["common words"] is None
    assert (opening.tokens, opening.base, opening.adapted) == (20, 2.0, 0.5)
    assert (form.adapted, knowledge.adapted) == (1.25, 2.25)
    assert (form.share, knowledge.share) == (1.5, -0.5)
    assert found["all"].share == 1
    assert opening.low == opening.high == -1.5


def test_the_interval_is_that_of_documents():
    """Two tokens of a document say no more than one if both change alike."""
    rng = np.random.default_rng(0)
    by_document = rng.standard_normal(200)
    once = Targets(np.arange(200), np.zeros(200, int), np.full(200, 3))
    twice = Targets(np.repeat(np.arange(200), 2), np.tile([0, 1], 200), np.full(400, 3))
    one = changes(once, np.zeros(200), by_document)["all"]
    two = changes(twice, np.zeros(400), np.repeat(by_document, 2))["all"]
    assert one
    assert two
    assert (one.low, one.high) == pytest.approx((two.low, two.high), rel=1e-12)
    half = 1.96 * by_document.std() / np.sqrt(200)
    assert (one.high - one.low) / 2 == pytest.approx(half, rel=0.1)
    assert one.low < by_document.mean() < one.high
    # A change that is equal at every token stays the same for any resampled documents, long and short.
    lengths = np.arange(1, 21)
    unlike = Targets(np.repeat(np.arange(20), lengths), np.zeros(210, int), np.full(210, 3))
    same = changes(unlike, np.zeros(210), np.full(210, -1.0))["all"]
    assert same
    assert (same.low, same.high) == (-1, -1)


def test_the_loss_by_place():
    targets = Targets(np.asarray([0, 0, 0, 1]), np.asarray([0, 1, 2, 0]), np.zeros(4, int))
    np.testing.assert_array_equal(by_place(targets, np.asarray([1.0, 5, 7, 3]), 4), [2, 5, 7, np.nan])


def test_data_without_targets_are_refused(tiny_model):
    document = Document(tokens=np.arange(3, dtype=np.int32), loss_mask=np.asarray([True, False, False]))
    with pytest.raises(InputError, match="no target tokens"):
        classify([document], load_tokenizer(tiny_model), opening=1)
