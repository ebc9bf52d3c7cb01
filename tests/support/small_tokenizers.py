"""Small tokenizers, trained by the tests, and the files that hold them."""

import io
import json

import gguf
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

CORPUS = [
    "The capital of France is Paris, and it has many visitors each year.",
    "Add 12 to 345 and you get 357; isn't that what we've been told?",
    "### Instruction:\nName a colour.\n\n### Response:\nBlue, I think.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train_byte_level():
    """Returns a byte-level BPE with SmolLM2's pre-tokenizer, with its special tokens first."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=390, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def train_sentencepiece(remove_extra_whitespaces):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=remove_extra_whitespaces,
        minloglevel=2,
    )
    return model.getvalue()


def write_gguf(path, **fields):
    """Writes a GGUF with vocabulary fields and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        key = f"tokenizer.ggml.{name}" if name != "chat_template" else "tokenizer.chat_template"
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write_bpe_gguf(path, tokenizer, **fields):
    state = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    merges = [" ".join(pair) for pair in state["merges"]]
    types = [3 if token in SPECIALS else 1 for token in tokens]
    given = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "token_type": types, "merges": merges}
    return write_gguf(path, **{**given, "bos_token_id": 1, "eos_token_id": 2, **fields})


def write_sentencepiece_gguf(path, model_bytes):
    model = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
    ids = range(model.GetPieceSize())
    kinds = [(model.IsUnknown, 2), (model.IsControl, 3), (model.IsByte, 6)]
    types = [next((kind for has, kind in kinds if has(i)), 1) for i in ids]
    pieces, scores = [model.IdToPiece(i) for i in ids], [model.GetScore(i) for i in ids]
    return write_gguf(
        path, model="llama", tokens=pieces, scores=scores, token_type=types, bos_token_id=1, eos_token_id=2
    )
