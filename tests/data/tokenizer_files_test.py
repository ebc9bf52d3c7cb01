"""Tokenizer files that are damaged, contradictory or hostile: each is refused in one sentence."""

import base64
import json
import shutil
from pathlib import Path

import places
import pytest
import sentencepiece
from small_tokenizers import CORPUS, train_byte_level, train_sentencepiece, write_bpe_gguf, write_gguf

from aligner_jax.data.tokenizer_files import load_tokenizer
from aligner_jax.data.tokenizer_sentencepiece import new_model
from aligner_jax.errors import InputError

GRID = places.GOLDENS / "tokenizer_grid"


@pytest.fixture(scope="module")
def pieces():
    return (GRID / "pieces.model").read_bytes()


def folder(path, vocabulary="pieces.model", **files):
    shutil.copy(GRID / vocabulary, path / f"tokenizer{Path(vocabulary).suffix}")
    for name, content in files.items():
        suffix = ".json" if name != "chat_template" else ".jinja"
        written = content if isinstance(content, bytes) else json.dumps(content).encode()
        (path / f"{name}{suffix}").write_bytes(written)
    return path


DECODER = {"content": "<|im_end|>"}


@pytest.mark.parametrize("vocabulary", ["pieces.model", "metaspace.json", "byte_level.json"])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, r"added_tokens_decoder is \[1\], not an object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": DECODER}}}, r"added_tokens_decoder\.x is not the number"),
        ({"tokenizer_config": {"added_tokens_decoder": {"-1": DECODER}}}, "is not the number of a token"),
        ({"tokenizer_config": {"added_tokens_decoder": {"600": {}}}}, r"600\.content is missing"),
        ({"tokenizer_config": {"added_tokens_decoder": {"600": 5}}}, "600 is 5, not an object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"600": None}}}, "600 is null"),
        ({"tokenizer_config": {"added_tokens_decoder": {"600": {"content": 5}}}}, r"600\.content is 5, not text"),
        ({"tokenizer_config": {"added_tokens_decoder": {"600": {"content": "x", "rstrip": "no"}}}}, "rstrip is 'no'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"600": {"content": ""}}}}, "added token without any text"),
        ({"tokenizer_config": {"added_tokens_decoder": {"600": DECODER, "601": DECODER}}}, "added token twice"),
        ({"tokenizer_config": {"legacy": "no"}}, "legacy is 'no', not true or false"),
        ({"tokenizer_config": {"add_prefix_space": 0}}, "add_prefix_space is 0, not true or false"),
        ({"tokenizer_config": {"add_bos_token": "true"}}, "add_bos_token is 'true'"),
        ({"tokenizer_config": {"add_eos_token": 1}}, "add_eos_token is 1"),
        ({"tokenizer_config": {"eos_token": 5}}, "eos_token is 5, not text"),
        (
            {"tokenizer_config": {"additional_special_tokens": [5]}},
            "holds something that is neither text nor an object",
        ),
        ({"tokenizer_config": {"additional_special_tokens": "x"}}, "is not a list of tokens"),
        (
            {"tokenizer_config": {"chat_template": [{"name": [], "template": "x"}]}},
            r"chat_template\.name is \[\], not text",
        ),
        ({"tokenizer_config": {"chat_template": 5}}, "chat_template is 5, not text"),
        ({"tokenizer_config": b"[" * 100_000}, "nested too deeply"),
        ({"tokenizer_config": b'{"a": ' + b"9" * 5000 + b"}"}, "too many digits"),
        ({"added_tokens": {"x": None}}, "is null, not a number"),
        ({"added_tokens": {"x": "1"}}, "is '1', not an integer"),
        ({"added_tokens": {"x": 1.5}}, "is 1.5, not an integer"),
        ({"added_tokens": {"x": True}}, "is True, not an integer"),
        ({"added_tokens": {"": 600}}, "added token without any text"),
        ({"added_tokens": {"x": 600, "y": 600}}, "number 600 of an added token twice"),
        ({"generation_config": {"eos_token_id": "2"}}, "eos_token_id is '2'"),
        ({"chat_template": b"\xff\xfe"}, r"chat_template\.jinja:1 is not UTF-8"),
    ],
)
def test_settings_of_another_shape(tmp_path, vocabulary, files, message):
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder(tmp_path, vocabulary, **files))


def test_names_that_are_empty_count_as_none(tmp_path):
    tokenizer = load_tokenizer(folder(tmp_path, tokenizer_config={"bos_token": "", "eos_token": "", "unk_token": ""}))
    assert tokenizer is not None
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


def test_a_number_that_the_files_give_is_kept(tmp_path):
    """The tokenizers package would assign the id 400."""
    tokenizer = load_tokenizer(folder(tmp_path, added_tokens={"<|im_end|>": 600}))
    assert tokenizer is not None
    ids = tokenizer.encode("one<|im_end|>", bos=True)
    assert (ids[0], ids[-1], tokenizer.vocab_size) == (1, 600, 601)
    assert tokenizer.decode(ids) == "one<|im_end|>"
    assert (tokenizer.backend.token(600), tokenizer.backend.token_id("<|im_end|>")) == ("<|im_end|>", 600)


@pytest.mark.parametrize("vocabulary", ["pieces.model", "metaspace.json"])
def test_a_number_that_contradicts_the_vocabulary(tmp_path, vocabulary):
    with pytest.raises(InputError, match=r"the added token '<s>' the number 7, but the vocabulary has it as 1"):
        load_tokenizer(folder(tmp_path, vocabulary, added_tokens={"<s>": 7}))


def replaced(**parts):
    return {**json.loads((GRID / "byte_level.json").read_text()), **parts}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
NOTHING = {"type": "Sequence", "pretokenizers": []}
PREPEND = {"type": "Prepend", "prepend": "a" * 500}
PIECE = {"Sequence": {"id": "A", "type_id": 0}}
# A trie whose units all point far beyond its end.
LOST = base64.b64encode((1024).to_bytes(4, "little") + b"\x00\xff\xff\x7f" * 256 + b"a\0").decode()
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}, "UNK"),
        (replaced(normalizer={"type": "Sequence", "normalizers": [REPLACE] * 40}), "1,000 times as long"),
        (replaced(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 200}), "more than 100 steps"),
        (replaced(normalizer={**REPLACE, "pattern": {"String": ""}}), "an empty pattern"),
        (replaced(normalizer={**REPLACE, "pattern": {"Regex": "(" * 5000}}), "a pattern of 5,000 characters"),
        (replaced(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAA=="}), "is damaged"),
        (replaced(pre_tokenizer=[]), "pre_tokenizer is not an object"),
        (replaced(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES] * 12}), "1,000 times as long"),
        (replaced(pre_tokenizer={"type": "Sequence", "pretokenizers": [NOTHING] * 200}), "more than 100 steps"),
        (replaced(pre_tokenizer={"type": "FixedLength", "length": 0}), "length is 0"),
        (replaced(normalizer={"type": "Sequence", "normalizers": [PREPEND] * 2}), "1,000 times as long"),
        (replaced(normalizer={"type": "Precompiled", "precompiled_charsmap": LOST}), "places that it does not have"),
        (replaced(decoder={"type": "Strip", "content": "a", "start": 2**60, "stop": 0}), "start is"),
        (replaced(post_processor={"type": "TemplateProcessing", "single": [PIECE] * 200, "pair": [PIECE],
                                  "special_tokens": {}}), "more than 100 pieces"),
        (replaced(model={"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "",
                         "max_input_chars_per_word": 10**9}), "max_input_chars_per_word"),
        (replaced(added_tokens=[{"id": 360, "content": "a" * 2000}]), "each has at most 1,000"),
        (replaced(model={**replaced()["model"], "dropout": 0.1}), "drops merges at random"),
        (replaced(added_tokens=[{**DECODER, "id": 600, "special": True, "single_word": False, "lstrip": False,
                                 "rstrip": False, "normalized": False}]), "has the number 600, but would be given 360"),
    ],
)  # fmt: skip
def test_a_tokenizer_json_that_cannot_be_used(tmp_path, value, message):
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("tokens", [["<a>" * 1000], ["<a>" * 300 + str(i) for i in range(700)]])
def test_marks_that_would_fill_the_memory(tmp_path, tokens):
    for files in ({"tokenizer_config": {"additional_special_tokens": tokens}},
                  {"added_tokens": {token: 400 + i for i, token in enumerate(tokens)}}):  # fmt: skip
        (path := tmp_path / next(iter(files))).mkdir()
        with pytest.raises(InputError, match=r"added tokens of [0-9,]* characters"):
            load_tokenizer(folder(path, "metaspace.json", **files))


def test_a_pattern_that_takes_too_long_ends_with_a_sentence(tmp_path):
    split = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(replaced(pre_tokenizer=split)))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    with pytest.raises(InputError, match=r"tokenizer\.json cannot encode the text"):
        tokenizer.encode("a" * 200 + "!")


def change(piece=None, score=None, kind=None, **trainer):
    def changed(model):
        for name, value in (("piece", piece), ("score", score), ("type", kind)):
            if value is not None:
                setattr(model.pieces[300], name, value)
        for name, value in trainer.items():
            setattr(model.trainer_spec, name, value)
        return model.SerializeToString()

    return changed


def parts_of_parts(model):
    for length in range(2, 250):
        model.pieces.add(piece="y" * length, score=-float(length), type=1)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change(piece=""), "piece 300 is empty"),
        (change(piece="z" * 300), "piece 300 has 300 characters"),
        (parts_of_parts, "in more than 4 ways each"),
        (change(piece="<s>"), "'<s>' of piece 300 is already defined"),
        (change(score=float("nan")), "the score of .* is nan"),
        (change(kind=2), "unk is 2 defined times"),
        (change(kind=6), "is no byte, as piece 300 should be"),
        (change(model_type=3), "is of words or characters"),
        (
            lambda model: model.SerializeToString().replace(model.pieces[300].piece.encode(), b"\xe1" * 3, 1),
            "not UTF-8|is cut",
        ),
    ],
)
def test_a_sentencepiece_model_that_cannot_be_used(tmp_path, pieces, changed, message):
    model = new_model.FromString(pieces)
    model.pieces[300].piece = "zzz"
    (tmp_path / "tokenizer.model").write_bytes(changed(model))
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("collapses", [True, False])
def test_ids_of_a_sentencepiece_model_are_those_of_its_package(tmp_path, collapses):
    content = train_sentencepiece(remove_extra_whitespaces=collapses)
    (tmp_path / "tokenizer.model").write_bytes(content)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    assert tokenizer is not None
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    words = [*" ".join(CORPUS).split(), "", " ", "\n", "\t", "é漢😀", "zzz", "12345"]
    for i in range(300):
        text = ["", " ", "  "][i % 3].join(words[(i * k) % len(words)] for k in range(1, 12)) + " " * (i % 4)
        ids = model.EncodeAsIds(text)
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == model.DecodeIds(ids)


def spm_gguf(path, pieces, marks, **fields):
    model = new_model.FromString(pieces)
    given = {
        "model": "llama",
        "tokens": [*(p.piece for p in model.pieces), *marks],
        "scores": [*(p.score for p in model.pieces), *(-1000.0 for _ in marks)],
        "token_type": [*(p.type for p in model.pieces), *marks.values()],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    tokenizer = load_tokenizer(write_gguf(path, **{**given, **fields}))
    assert tokenizer is not None
    return tokenizer


def test_marks_of_a_sentencepiece_gguf_are_control_or_user_defined(tmp_path, pieces):
    """llama.cpp splits a text at both kinds, and adds a space after each marker."""
    text = "<|im_start|>user\none[X]two<|im_end|>\n"
    control, defined = ({"<|im_start|>": kind, "<|im_end|>": kind, "[X]": kind} for kind in (3, 4))
    first = spm_gguf(tmp_path / "3.gguf", pieces, control)
    second = spm_gguf(tmp_path / "4.gguf", pieces, defined)
    assert first.encode(text) == second.encode(text)
    assert first.encode(text)[:2] == [400, *first.encode("user")][:2]
    assert first.decode(first.encode(text)) == "user\none two \n"
    assert second.decode(second.encode(text)) == "<|im_start|> user\none[X] two \n"
    assert {400, 401} & second.stop_ids == {401}
    folder_ids = load_tokenizer(folder(tmp_path, added_tokens={"<|im_start|>": 400, "<|im_end|>": 401, "[X]": 402}))
    assert folder_ids is not None
    assert folder_ids.encode(text) == first.encode(text)


@pytest.mark.parametrize("padding", [2**32 - 1, 400])
def test_a_padding_token_beyond_the_vocabulary_counts_as_none(tmp_path, pieces, padding):
    assert spm_gguf(tmp_path / "t.gguf", pieces, {}, padding_token_id=padding).pad_id == 2


def test_a_gguf_without_the_space_before_a_text(tmp_path, pieces):
    tokenizer = spm_gguf(tmp_path / "t.gguf", pieces, {}, add_space_prefix=False)
    assert tokenizer.decode(tokenizer.encode(" one")) == " one"
    assert tokenizer.encode("one") != spm_gguf(tmp_path / "s.gguf", pieces, {}).encode("one")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_type": [1.5] * 390}, "token_type is not one number for each of the 390 tokens, and whole"),
        ({"token_type": [True] * 390}, "token_type is not one number for each of the 390 tokens, and whole"),
        ({"bos_token_id": True}, "bos_token_id is True, not an integer"),
        ({"add_bos_token": [1, 2]}, "add_bos_token is .*, not true or false"),
        ({"merges": ["ab"]}, "has 'ab' as number 0, which is not two tokens and a space"),
        ({"tokens": ["a"] * 390}, "has 'a' twice, as number 0 and 1"),
        ({"chat_template": 5}, "chat_template is 5, not text"),
        ({"model": 5}, r"tokenizer\.ggml\.model is 5, not text"),
        ({"pre": 5}, r"tokenizer\.ggml\.pre is 5, not text"),
    ],
)
def test_a_gguf_vocabulary_of_other_types(tmp_path, fields, message):
    path = write_bpe_gguf(tmp_path / "t.gguf", train_byte_level(), **fields)
    with pytest.raises(InputError, match=message):
        load_tokenizer(path)
