"""Writes tests/goldens/tokenizer_grid: ids and decoded texts by transformers, over settings of a folder and texts.

    PEER_PYTHON tests/goldens/make/golden_tokenizer_grid.py

PEER_PYTHON has transformers 5.24, tokenizers and sentencepiece. The vocabularies are trained on a few sentences of
`tests/support/small_tokenizers.py`. Existing ones are kept, since other releases train other vocabularies.
"""

import io
import itertools
import json
import pathlib
import shutil
import sys
import tempfile

import sentencepiece
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).parents[1] / "tokenizer_grid"
CORPUS = [
    "The capital of France is Paris, and it has many visitors each year.",
    "### Instruction:\nName a colour.\n\n### Response:\nBlue, I think.",
    "user assistant system one two three four five hi there once upon a time",
]
TEXTS = [
    "",
    " ",
    "one two",
    " one",
    "  one  two  ",
    "one</s>two",
    "one</s>\ntwo</s> three",
    "<s>one",
    "<s> one",
    "<|im_start|>user\none two<|im_end|>\n<|im_start|>assistant\n",
    "hi <|im_end|> there",
    "hi<|im_end|>  there<|im_end|>",
    "[X]one[X] two [X]",
    "a[X]b xx[X]",
    "one\n\ntwo\ttab",
    "emoji 😀 é漢",
    "▁one",
    "one[U]two [U] three",
    "<unk>one",
]
SIZES = {"byte_level.json": 360}
"""Sizes of the vocabularies that do not have 400 tokens."""
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def sentencepiece_model(**options) -> bytes:
    """Returns a model of 400 pieces like LLaMA's: BPE, bytes, single digits, no normalization."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4), model_writer=model, model_type="bpe", vocab_size=400, byte_fallback=True,
        split_digits=True, normalization_rule_name="identity", minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


def byte_level() -> tokenizers.Tokenizer:
    """Returns a byte-level BPE of 360 tokens without markers."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def from_pieces(model: bytes, prepends: bool) -> tokenizers.Tokenizer:
    """Returns the tokenizer.json of a SentencePiece model, in either of the two published forms."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "tokenizer.model").write_bytes(model)
        settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, **NAMES}
        (pathlib.Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer
    if prepends:
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def vocabularies() -> None:
    """Writes the vocabularies that do not exist yet."""
    OUT.mkdir(exist_ok=True)
    pieces = sentencepiece_model(remove_extra_whitespaces=False)
    made = {
        "pieces.model": lambda: pieces,
        "collapsing.model": lambda: sentencepiece_model(remove_extra_whitespaces=True, user_defined_symbols="[U]"),
        "metaspace.json": lambda: from_pieces(pieces, False).to_str().encode(),
        "prepend.json": lambda: from_pieces(pieces, True).to_str().encode(),
        "byte_level.json": lambda: byte_level().to_str().encode(),
    }
    for name, make in made.items():
        if not (OUT / name).exists():
            (OUT / name).write_bytes(make())
    assert byte_level().get_vocab_size() == SIZES["byte_level.json"]


def numbered(vocabulary: str, *entries: dict) -> dict[str, dict]:
    """Returns an `added_tokens_decoder` with the first ids that are free in the vocabulary."""
    return {str(i): entry for i, entry in enumerate(entries, SIZES.get(vocabulary, 400))}


def with_numbers(vocabulary: str, mark: dict) -> dict:
    """Returns the settings with ids for a list of added tokens."""
    decoder = mark.get("added_tokens_decoder")
    return mark if decoder is None else {**mark, "added_tokens_decoder": numbered(vocabulary, *decoder)}


def grid():
    """Yields (vocabulary, settings files) of every case."""
    llama = {"tokenizer_class": "LlamaTokenizer", **NAMES}
    absent = {}
    entries = [("<|im_end|>", True), ("<|im_start|>", True), ("[X]", False)]
    marks = [
        absent,
        {"added_tokens_decoder": [{"content": content, "special": special} for content, special in entries]},
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>", "[X]"]},
    ]
    legacies = [absent, {"legacy": True}, {"legacy": False}]
    prefixes = [absent, {"add_prefix_space": True}, {"add_prefix_space": False}]
    for vocabulary, legacy, prefix, mark in itertools.product(
        ("pieces.model", "prepend.json"), legacies, prefixes, marks[:2]
    ):
        yield vocabulary, {"tokenizer_config.json": {**llama, **legacy, **prefix, **with_numbers(vocabulary, mark)}}
    names = ("pieces.model", "collapsing.model", "metaspace.json", "prepend.json", "byte_level.json")
    for vocabulary, mark, kind in itertools.product(names, marks, ("LlamaTokenizerFast", "PreTrainedTokenizerFast")):
        named = {} if vocabulary == "byte_level.json" else NAMES
        config = {"tokenizer_class": kind, **named, **with_numbers(vocabulary, mark)}
        yield vocabulary, {"tokenizer_config.json": config}
    flags = [
        dict(zip(("special", "normalized", "lstrip", "rstrip", "single_word"), values, strict=True))
        for values in itertools.product((False, True), repeat=5)
    ]
    for flag, vocabulary in itertools.product(flags, ("pieces.model", "byte_level.json")):
        decoder = numbered(vocabulary, {"content": "<|im_end|>", **flag}, {"content": "[X]", **flag})
        named = {} if vocabulary == "byte_level.json" else {**llama, "legacy": False}
        yield vocabulary, {"tokenizer_config.json": {**named, "added_tokens_decoder": decoder}}
    for vocabulary in names:
        named = {} if vocabulary == "byte_level.json" else llama
        config = {"tokenizer_config.json": named}
        size = SIZES.get(vocabulary, 400)
        added = {"<|im_start|>": size, "<|im_end|>": size + 1}
        yield vocabulary, {**config, "added_tokens.json": added}
        yield vocabulary, {**config, "added_tokens.json": added, "special_tokens_map.json": {"eos_token": "<|im_end|>"}}
        yield (
            vocabulary,
            {**config, "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>", "rstrip": True}}},
        )
        yield vocabulary, {"tokenizer_config.json": {**named, "image_token": "[X]", "pad_token": "<pad>"}}
    for vocabulary, legacy in itertools.product(("pieces.model", "prepend.json"), legacies):
        config = {**llama, **legacy, "added_tokens_decoder": numbered(vocabulary, {"content": "[X]", "special": True})}
        yield vocabulary, {"tokenizer_config.json": config, "config.json": {"model_type": "mistral"}}
    for vocabulary, mark in itertools.product(names, marks[1:]):
        named = {} if vocabulary == "byte_level.json" else {**llama, "legacy": False}
        config = {**named, **with_numbers(vocabulary, mark), "split_special_tokens": True}
        yield vocabulary, {"tokenizer_config.json": config}
    for prefix in prefixes:
        yield "byte_level.json", {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", **prefix}}
    for vocabulary, prefix in itertools.product(("pieces.model", "prepend.json"), prefixes[:2]):
        config = {**llama, "tokenizer_class": "CodeLlamaTokenizer", "legacy": None, **prefix}
        yield vocabulary, {"tokenizer_config.json": config}
    for legacy in (True, False):
        yield (
            "pieces.model",
            {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "legacy": legacy}},
        )


def main() -> None:
    """Writes the goldens; leaves out the settings that transformers cannot load."""
    vocabularies()
    rows, left_out = [], 0
    for vocabulary, settings in grid():
        with tempfile.TemporaryDirectory() as folder:
            name = "tokenizer" + pathlib.Path(vocabulary).suffix
            shutil.copy(OUT / vocabulary, pathlib.Path(folder) / name)
            for file, content in {"config.json": {"model_type": "llama"}, **settings}.items():
                (pathlib.Path(folder) / file).write_text(json.dumps(content))
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
                ids = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
            except Exception as error:
                print(f"left out: {vocabulary} {settings}: {type(error).__name__} {error}", file=sys.stderr)
                left_out += 1
                continue
            decoded = [tokenizer.decode(each, skip_special_tokens=True) for each in ids]
        rows.append({"vocabulary": vocabulary, "settings": settings, "ids": ids, "decoded": decoded})
    # Many settings give the same ids, so each list is stored once.
    lists = sorted({json.dumps([row.pop("ids"), row.pop("decoded")]) for row in map(dict, rows)})
    lines = [
        json.dumps(
            {
                **{k: row[k] for k in ("vocabulary", "settings")},
                "of": lists.index(json.dumps([row["ids"], row["decoded"]])),
            }
        )
        for row in rows
    ]
    (OUT / "grid.json").write_text(
        '{"texts": ' + json.dumps(TEXTS) + ',\n"results": [\n' + ",\n".join(lists) + '],\n"rows": [\n'
        + ",\n".join(lines) + "]}\n"
    )  # fmt: skip
    print(f"{len(rows)} settings with {len(lists)} different results, {left_out} left out")


if __name__ == "__main__":
    main()
