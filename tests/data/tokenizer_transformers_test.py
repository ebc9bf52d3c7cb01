"""The files for transformers hold the tokenizer that they are made of."""

import json

import pytest
import tokenizers
from small_tokenizers import (
    CORPUS,
    train_byte_level,
    train_sentencepiece,
    write_bpe_gguf,
    write_sentencepiece_gguf,
)

from aligner_jax.data.tokenizer_files import load_tokenizer
from aligner_jax.data.tokenizer_transformers import transformers_files

TEXTS = [
    *CORPUS,
    "",
    " a",
    "  two  spaces ",
    "\n\ttabs\n",
    "<|im_start|>user\nHi 1234<|im_end|>\n",
    "日本 é🙂",
    "</s>x",
]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"


def made(path, kind):
    if kind == "sentencepiece":
        return write_sentencepiece_gguf(path, train_sentencepiece(remove_extra_whitespaces=False))
    return write_bpe_gguf(
        path, train_byte_level(), add_bos_token=kind == "bpe with bos", chat_template=TEMPLATE, padding_token_id=2
    )


@pytest.mark.parametrize("kind", ["bpe", "bpe with bos", "sentencepiece"])
def test_a_gguf_vocabulary_becomes_the_same_tokenizer(tmp_path, kind):
    ours = load_tokenizer(made(tmp_path / "base.gguf", kind))
    folder = tmp_path / "out"
    folder.mkdir()
    for name, content in transformers_files(ours).items():
        (folder / name).write_bytes(content)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    again = load_tokenizer(folder)
    assert ours.add_bos == (kind != "bpe")
    assert (again.bos_id, again.eos_id, again.pad_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert (again.add_bos, again.chat_template, again.unk_token) == (ours.add_bos, ours.chat_template, ours.unk_token)
    for text in TEXTS:
        ids = ours.encode(text, bos=ours.add_bos)
        # Theirs puts BOS before a text that begins with it, too.
        assert theirs.encode(text).ids == [ours.bos_id] * ours.add_bos + ours.encode(text)
        assert again.encode(text, bos=again.add_bos) == ids
        assert again.decode(ids) == theirs.decode(ids) == ours.decode(ids)


def test_the_configuration_names_the_special_tokens(tmp_path):
    files = transformers_files(load_tokenizer(made(tmp_path / "base.gguf", "bpe")))
    config = json.loads(files["tokenizer_config.json"])
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "add_bos_token": False,
        "chat_template": TEMPLATE,
    }


def test_ids_that_no_tokenizer_json_gives_have_no_files(tmp_path):
    vocabulary = train_byte_level()
    (tmp_path / "tokenizer.json").write_text(vocabulary.to_str())
    added = {"added_tokens_decoder": {str(vocabulary.get_vocab_size() + 5): {"content": "<far>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(added))
    assert transformers_files(load_tokenizer(tmp_path)) == {}
