"""Tokenizers of Hugging Face folders, and single tokenizer files."""

import json
from pathlib import Path

from aligner_jax.data.tokenizer import Tokenizer, make_tokenizer
from aligner_jax.data.tokenizer_hf import HFBackend, read_tokenizer_json
from aligner_jax.data.tokenizer_sentencepiece import SentencePieceBackend, read_model
from aligner_jax.errors import InputError

_SETTINGS = ("tokenizer_config", "special_tokens_map", "added_tokens", "generation_config", "config")


def load(folder: Path) -> Tokenizer | None:
    """The tokenizer of a folder, None if it holds none; see `tokenizer.load_tokenizer`."""
    settings = {name: _read_json(folder / f"{name}.json") for name in _SETTINGS}
    if (folder / "tokenizer.json").is_file():
        return _declared(read_tokenizer_json(folder / "tokenizer.json"), settings, folder)
    for path in [folder / "tokenizer.model", *sorted(folder.glob("tokenizer.model.v*"))]:
        if path.is_file():
            return _declared(_sentencepiece(path, settings), settings, folder)
    return None


def files(folder: Path) -> list[Path]:
    """Every file of a folder that `load` reads."""
    names = ["tokenizer.json", "tokenizer.model", "chat_template.jinja", *(f"{name}.json" for name in _SETTINGS)]
    return [*(folder / name for name in names if (folder / name).is_file()), *folder.glob("tokenizer.model.v*")]


def load_file(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json or in a SentencePiece model, whose name may be anything with `.model` in it."""
    if path.suffix == ".json":
        return _declared(read_tokenizer_json(path), {}, None)
    if ".model" not in path.name:
        raise InputError(f"{path} is not a tokenizer: expected a folder, a .model, a .gguf or a tokenizer.json")
    return _declared(SentencePieceBackend(read_model(path)), {}, None)


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}, is not JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value


def _sentencepiece(path: Path, settings: dict[str, dict]) -> SentencePieceBackend:
    """With the tokens that the folder adds to the model's."""
    added = {str(token): int(i) for token, i in settings["added_tokens"].items()}
    special = []
    for i, entry in (settings["tokenizer_config"].get("added_tokens_decoder") or {}).items():
        added[entry["content"]] = int(i)
        if entry.get("special", False):
            special.append(entry["content"])
    return SentencePieceBackend(read_model(path), added, special)


def _declared(backend: HFBackend | SentencePieceBackend, settings: dict[str, dict], folder: Path | None) -> Tokenizer:
    """Special tokens: by name from the tokenizer's settings, else the model's own, else by number from its config."""
    config = settings.get("tokenizer_config", {})
    numbers = [settings.get("generation_config", {}), settings.get("config", {})]

    def token(name: str) -> int | None:
        for source in (config, settings.get("special_tokens_map", {})):
            entry = source.get(f"{name}_token")
            entry = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(entry, str) and backend.token_id(entry) is not None:
                return backend.token_id(entry)
        if isinstance(backend, SentencePieceBackend):
            return {"bos": backend.bos_id, "eos": backend.eos_id, "pad": backend.pad_id}[name]
        return next((i for source in numbers for i in _ids(source, name, backend.vocab_size)), None)

    bos_id = token("bos")
    if isinstance(backend, HFBackend):
        first = backend.first_id()
        add_bos = first is not None
        bos_id = first if bos_id is None else bos_id
    else:
        add_bos = True
    asked = config.get("add_bos_token")
    return make_tokenizer(
        backend,
        bos_id=bos_id,
        eos_id=token("eos"),
        pad_id=token("pad"),
        add_bos=asked if isinstance(asked, bool) else add_bos,
        stop_ids=[i for source in numbers for i in _ids(source, "eos", backend.vocab_size)],
        chat_template=_chat_template(config, folder),
    )


def _ids(source: dict, name: str, vocab_size: int) -> list[int]:
    entry = source.get(f"{name}_token_id")
    return [i for i in (entry if isinstance(entry, list) else [entry]) if isinstance(i, int) and 0 <= i < vocab_size]


def _chat_template(config: dict, folder: Path | None) -> str | None:
    if folder is not None and (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        by_name = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = by_name.get("default", next(iter(by_name.values()), None))
    return template if isinstance(template, str) else None
