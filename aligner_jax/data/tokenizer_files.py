"""Loads a tokenizer from the files of a checkpoint of any supported format."""

from pathlib import Path

from aligner_jax.data import tokenizer_gguf
from aligner_jax.data.gguf_metadata import read_gguf_header
from aligner_jax.data.tokenizer import Tokenizer, make_tokenizer
from aligner_jax.data.tokenizer_hf import MAX_BYTES, HFBackend, read_tokenizer_json
from aligner_jax.data.tokenizer_sentencepiece import SentencePieceBackend, read_model
from aligner_jax.data.tokenizer_settings import Settings, read_settings
from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, is_file, is_folder, open_file, read_bytes, read_text
from aligner_jax.files.fields import Fields, read_fields

_SETTINGS = ("tokenizer_config", "special_tokens_map", "added_tokens", "generation_config", "config")
_TEMPLATE = "chat_template.jinja"
_GGUF = "tokenizer.gguf"


def load_tokenizer(path: Path | str) -> Tokenizer | None:
    """Loads the tokenizer of a checkpoint.

    In a folder tokenizer.json takes precedence over tokenizer.model. tokenizer_config.json, special_tokens_map.json,
    added_tokens.json, generation_config.json, config.json and chat_template.jinja are read if present. A folder may
    hold a tokenizer.gguf instead, which `tokenizer_files` makes.

    Args:
      path: Hugging Face folder, SentencePiece .model, tokenizer.json, or GGUF file.

    Returns:
      The tokenizer; None if the folder or GGUF file holds no vocabulary.

    Raises:
      InputError: the path does not exist, or a file is damaged or of an unknown format.
    """
    path = Path(path)
    if not exists(path):
        raise InputError(f"{path} does not exist")
    if is_folder(path):
        vocabulary = path / _GGUF
        return tokenizer_gguf.load(vocabulary) if is_file(vocabulary) else _load_folder(path)
    if path.suffix == ".gguf":
        return tokenizer_gguf.load(path)
    return _load_file(path)


def tokenizer_files(path: Path | str) -> dict[str, bytes]:
    """Returns the contents, by name, of the files that `load_tokenizer` needs in a folder to load the same tokenizer.

    A GGUF file is cut after its header, which holds the vocabulary.

    Raises:
      InputError: a file cannot be read.
    """
    path = Path(path)
    if is_folder(path):
        return {file.name: read_bytes(file, most=MAX_BYTES) for file in _folder_files(path)}
    if path.suffix != ".gguf":
        return {path.name: read_bytes(path, most=MAX_BYTES)}
    size = read_gguf_header(path).data_offset
    with open_file(path) as file:
        return {_GGUF: file.read(size)}


def _load_folder(folder: Path) -> Tokenizer | None:
    fields = {name: _read(folder / f"{name}.json") for name in _SETTINGS}
    settings = read_settings(
        fields["tokenizer_config"], fields["special_tokens_map"], fields["added_tokens"], fields["config"]
    )
    if is_file(folder / "tokenizer.json"):
        return _declared(read_tokenizer_json(folder / "tokenizer.json", settings), settings, fields, folder)
    for path in [folder / "tokenizer.model", *sorted(folder.glob("tokenizer.model.v*"))]:
        if is_file(path):
            backend = SentencePieceBackend(read_model(path), settings, str(path))
            return _declared(backend, settings, fields, folder)
    return None


def _folder_files(folder: Path) -> list[Path]:
    """Returns the files that `load_tokenizer` reads in a folder."""
    if is_file(folder / _GGUF):
        return [folder / _GGUF]
    names = ["tokenizer.json", "tokenizer.model", _TEMPLATE, *(f"{name}.json" for name in _SETTINGS)]
    return [*(folder / name for name in names if is_file(folder / name)), *folder.glob("tokenizer.model.v*")]


def _load_file(path: Path) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, or of a SentencePiece model, with `.model` anywhere in its name."""
    if path.suffix == ".json":
        return _declared(read_tokenizer_json(path), Settings(), {}, None)
    if ".model" not in path.name:
        raise InputError(f"{path} is not a tokenizer: expected a folder, a .model, a .gguf or a tokenizer.json")
    return _declared(SentencePieceBackend(read_model(path), where=str(path)), Settings(), {}, None)


def _read(path: Path) -> Fields:
    return read_fields(path) if is_file(path) else Fields({}, path)


def _declared(backend: HFBackend, settings: Settings, fields: dict[str, Fields], folder: Path | None) -> Tokenizer:
    """Returns the tokenizer. Special tokens come from `settings`, else a SentencePiece model, else ids in configs."""
    numbers = [fields[name] for name in ("generation_config", "config") if name in fields]

    def token(name: str) -> int | None:
        if name in settings.names:
            return backend.token_id(settings.names[name].content)
        if isinstance(backend, SentencePieceBackend):
            return backend.own_ids[name]
        return next((i for source in numbers for i in _ids(source, name, backend.vocab_size)), None)

    # Qwen's config.json has an id of BOS, but its tokenizer_config.json says null, which transformers follows.
    has_bos = "tokenizer_config" not in fields or fields["tokenizer_config"].values.get("bos_token", "") is not None
    bos_id = token("bos") if has_bos or "bos" in settings.names else None
    add_bos = True
    if not isinstance(backend, SentencePieceBackend):
        first = backend.first_id()
        add_bos = first is not None
        bos_id = first if bos_id is None else bos_id
    return make_tokenizer(
        backend,
        bos_id=bos_id,
        eos_id=token("eos"),
        pad_id=token("pad"),
        add_bos=add_bos if settings.add_bos is None else settings.add_bos,
        stop_ids=[i for source in numbers for i in _ids(source, "eos", backend.vocab_size)],
        chat_template=None if folder is None else _chat_template(fields["tokenizer_config"], folder),
        unk_token=settings.names["unk"].content if "unk" in settings.names else "",
    )


def _ids(source: Fields, name: str, vocab_size: int) -> list[int]:
    """Returns the ids that a config gives a special token, without those beyond the vocabulary."""
    field = f"{name}_token_id"
    if isinstance(source.get(field), list):
        found = source.integers(field, least=-1)
    else:
        found = [source.integer(field, least=-1)] if source.has(field) else []
    return [i for i in found if 0 <= i < vocab_size]


def _chat_template(config: Fields, folder: Path) -> str | None:
    if is_file(folder / _TEMPLATE):
        return read_text(folder / _TEMPLATE)
    template = config.get("chat_template")
    if isinstance(template, list):
        by_name: dict[str, str] = {}
        for entry in template:
            if not isinstance(entry, dict):
                raise config.error("chat_template", "is a list of something else than objects with name and template")
            one = Fields(entry, config.file, "chat_template.")
            by_name[one.text("name")] = one.text("template")
        return by_name.get("default", next(iter(by_name.values()), None))
    return config.text("chat_template") if config.has("chat_template") else None
