"""Writes a tokenizer as the files from which transformers loads an equal one, for vocabularies of other forms."""

import json

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.data.tokenizer_hf import HFBackend


def transformers_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Returns tokenizer.json and tokenizer_config.json by name, the latter with special tokens and chat template.

    Texts get the ids of `Tokenizer.encode` with `bos=tokenizer.add_bos`, but transformers also puts BOS before a text
    that begins with it. Empty if no tokenizer.json can hold the vocabulary.
    """
    backend = tokenizer.backend
    text = backend.to_json() if isinstance(backend, HFBackend) else None
    if text is None:
        return {}
    content, config = json.loads(text), _config(tokenizer)
    content["post_processor"] = None
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        content["post_processor"] = _before_text(config["bos_token"], tokenizer.bos_id)
    return {
        "tokenizer.json": (json.dumps(content, ensure_ascii=False) + "\n").encode(),
        "tokenizer_config.json": (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode(),
    }


def _config(tokenizer: Tokenizer) -> dict:
    # The class keeps all of tokenizer.json. Those of single models replace its pre-tokenizer by their own.
    config: dict = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    if tokenizer.pad_id in tokenizer.backend.special_ids:
        ids["pad"] = tokenizer.pad_id
    config |= {f"{name}_token": tokenizer.backend.token(i) for name, i in ids.items() if i is not None}
    if tokenizer.unk_token:
        config["unk_token"] = tokenizer.unk_token
    config["add_bos_token"] = tokenizer.add_bos and tokenizer.bos_id is not None
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return config


def _before_text(token: str, token_id: int) -> dict:
    """Returns the post-processor that puts a token before every text."""
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    before_first, before_second = ({"SpecialToken": {"id": token, "type_id": i}} for i in range(2))
    return {
        "type": "TemplateProcessing",
        "single": [before_first, first],
        "pair": [before_first, first, before_second, second],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
