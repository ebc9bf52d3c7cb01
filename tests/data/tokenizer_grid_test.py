"""Every tokenizer file and setting against transformers; `golden_tokenizer_grid.py` wrote the expected results."""

import json
import shutil
from pathlib import Path

import places
import pytest

from aligner_jax.data.tokenizer_files import load_tokenizer

GOLDENS = places.GOLDENS / "tokenizer_grid"
GRID = json.loads((GOLDENS / "grid.json").read_text())


def described(row):
    config = dict(row["settings"].get("tokenizer_config.json", {}))
    decoder = config.pop("added_tokens_decoder", {})
    flags = {key for entry in decoder.values() for key, value in entry.items() if value is True}
    rest = [f"{k}={v}" for k, v in config.items() if k not in ("bos_token", "unk_token")]
    return " ".join([row["vocabulary"], *rest, *(["decoder", *sorted(flags)] if decoder else []), *row["settings"]])


@pytest.mark.parametrize("row", GRID["rows"], ids=described)
def test_ids_and_texts_are_those_of_transformers(tmp_path, row):
    shutil.copy(GOLDENS / row["vocabulary"], tmp_path / f"tokenizer{Path(row['vocabulary']).suffix}")
    for name, content in {"config.json": {"model_type": "llama"}, **row["settings"]}.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    ids, decoded = GRID["results"][row["of"]]
    found = [tokenizer.encode(text) for text in GRID["texts"]]
    assert dict(zip(GRID["texts"], found, strict=True)) == dict(zip(GRID["texts"], ids, strict=True))
    texts = [tokenizer.decode(each) for each in ids]
    assert dict(zip(GRID["texts"], texts, strict=True)) == dict(zip(GRID["texts"], decoded, strict=True))
