"""Compares the tokenizer of an exported base in transformers with ours; run from the repository's root.

    PEER_PYTHON=ENV/bin/python python -m scripts.bench.exported_tokenizer [--base=PATH]

Writes the tokenizer's files as `python -m aligner_jax.export --to=hf` does, and encodes 50 texts with both: questions
and answers of the quickstart, code, white space, other scripts, and a chat with special tokens.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from aligner_jax.data.sources import load_examples
from aligner_jax.data.templates import render_prompt
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.exports.hf import tokenizer_folder_files
from aligner_jax.exports.source import open_stored
from aligner_jax.studies.flag_values import MODEL
from scripts.bench.protocol import peer_python
from scripts.bench.same_model import DATA

PEER = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
asked = json.load(sys.stdin)
chat = None
if asked["question"] is not None:
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": asked["question"]}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
ids = [tokenizer.encode(text) for text in asked["texts"]]
special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
print(json.dumps({"ids": ids, "chat": chat, "special": special, "class": type(tokenizer).__name__}))
"""
_ODD = [
    "", " ", "a", " a", "  two  spaces  ", "\n\n\n", "\ttab\r\nline", "1234567890 3.14 1e-5", "I'll don't we've IT'S",
    "def f(x):\n    return x ** 2  # square\n", "naïve café Zwölf Boxkämpfer", "日本語のテキスト", "Привет, мир!",
    "مرحبا بالعالم", "🙂👩‍👩‍👧", "a\u0301 e\u0301", "{\"topic\": \"science\"}", "https://example.org/?a=b&c=%20",
    "<|im_start|>user\nHi<|im_end|>\n", "word<|endoftext|>word",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=MODEL, help="a base with a tokenizer (default %(default)s)")
    base = open_stored(parser.parse_args().base)
    tokenizer = base.tokenizer
    if tokenizer is None:
        sys.exit(f"error: {base.name} has no tokenizer")
    texts = _texts()
    question = texts[0] if tokenizer.chat_template is not None else None
    with tempfile.TemporaryDirectory() as folder:
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        files = {"config.json": json.dumps(config).encode(), **tokenizer_folder_files(base)}
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        theirs = _asked(folder, {"texts": texts, "question": question})
    equal = sum(ids == _ours(tokenizer, text) for ids, text in zip(theirs["ids"], texts, strict=True))
    print(f"{theirs['class']} of {base.name}: equal ids of {equal} of {len(texts)} texts")
    chat = question and render_prompt(question, tokenizer, "chat", system="")
    same = theirs["chat"] == chat and theirs["special"] == [tokenizer.bos_id, tokenizer.eos_id]
    print(f"chat template and special tokens: {'equal' if same else 'different'}")
    if equal < len(texts) or not same:
        sys.exit("error: the tokenizers differ")


def _texts() -> list[str]:
    examples = load_examples(str(DATA))[:15]
    return [text for example in examples for text in (example.question, example.answer)] + _ODD


def _ours(tokenizer: Tokenizer, text: str) -> list[int]:
    return [tokenizer.bos_id] * tokenizer.add_bos + tokenizer.encode(text)  # pyright: ignore[reportReturnType]


def _asked(folder: str, request: dict) -> dict:
    command = [peer_python(), "-c", PEER, folder]
    ended = subprocess.run(command, input=json.dumps(request), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout)


if __name__ == "__main__":
    main()
