"""Settings of a tokenizer beside its vocabulary: reads them from files, and adds their tokens to a vocabulary."""

import dataclasses
from collections.abc import Iterable, Mapping

import tokenizers

from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields

NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Names of special tokens, in the order in which transformers adds those that the vocabulary lacks."""
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_MAX_TOKENS = 100_000
_LLAMAS = ("LlamaTokenizer", "CodeLlamaTokenizer")
# A character of an added token takes some 80 bytes of the automaton that matches all of them at once.
_LONGEST_TOKEN, _MAX_CHARACTERS, _CHARACTERS_A_TOKEN = 1000, 500_000, 20


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """An added token, which is matched in the text before the model encodes the rest.

    Attributes:
      content: text of the token.
      id: token id; None if the files name the token without an id.
      special: True if decoding leaves the token out.
      normalized: True if the token is matched after normalization, False if before.
      lstrip, rstrip: True if the token includes the white space before it, or after it.
      single_word: True if the token is matched only between non-word characters.
    """

    content: str
    id: int | None = None
    special: bool = False
    normalized: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a tokenizer, from any kind of file; None if the files leave a setting open.

    Attributes:
      added_tokens: added tokens, those with an id first.
      lists_special: True if the files list special tokens. Control pieces of a SentencePiece model that are not listed
        are then not added tokens.
      names: special tokens by the names in `NAMES`, such as "bos" and "eos".
      add_bos: True if a text gets BOS before it.
      is_llama: True if the files ask for transformers' LlamaTokenizer or CodeLlamaTokenizer. These split text by
        `legacy` and `prefix_space`, not by the settings in the vocabulary's file.
      legacy: True puts a space before every stretch of text between added tokens, False before the first only.
      prefix_space: False puts no space before texts. Among byte-level vocabularies only GPT2Tokenizer's obey it.
      is_gpt2: True if the files ask for transformers' GPT2Tokenizer.
      splits_special: True if special tokens in a text are encoded as plain text.
    """

    added_tokens: tuple[AddedToken, ...] = ()
    lists_special: bool = False
    names: Mapping[str, AddedToken] = dataclasses.field(default_factory=dict)
    add_bos: bool | None = None
    is_llama: bool = False
    legacy: bool | None = None
    prefix_space: bool | None = None
    is_gpt2: bool = False
    splits_special: bool = False

    @property
    def scheme(self) -> str:
        """Prepend scheme of `Metaspace` that LlamaTokenizer uses: "always", "first" or "never"."""
        if self.prefix_space is False:
            return "never"
        return "always" if self.legacy else "first"


NO_SETTINGS = Settings()


def read_settings(config: Fields, special_map: Fields, added: Fields, model: Fields) -> Settings:
    """Returns the settings of a Hugging Face folder, with the precedence of transformers 5.

    `added_tokens_decoder` takes precedence for tokens. Without it, special_tokens_map.json takes precedence over the
    names in tokenizer_config.json, and added_tokens.json gives the ids. `add_eos_token` is checked but not applied:
    documents always end with EOS, and prompts never do.

    Args:
      config: tokenizer_config.json.
      special_map: special_tokens_map.json.
      added: added_tokens.json.
      model: config.json.

    Raises:
      InputError: a field has the wrong type; an added token is empty, occurs twice, or shares its id with another.
    """
    numbered = _decoder(config)
    by_name = _by_name(added)
    has_decoder = config.has("added_tokens_decoder")
    sources = (config, special_map) if has_decoder else (special_map, config)
    names = _names(sources)
    extra = _extra(sources)
    if not has_decoder:
        named = {token.content for token in (*names.values(), *extra)}
        numbered = [AddedToken(t, i, special=t in named, normalized=t not in named) for t, i in by_name.items()]
    config.flag("add_eos_token")
    legacy = config.flag("legacy") if config.has("legacy") else None
    check_added_tokens((token.content for token in extra), str(config.file))
    return Settings(
        added_tokens=(*_distinct(numbered, config if has_decoder else added), *extra),
        lists_special=any(source.get(field) for source in sources for field in _LISTS),
        names=names,
        add_bos=config.flag("add_bos_token") if config.has("add_bos_token") else None,
        is_llama=_class(config, model) in _LLAMAS and model.get("model_type") in (None, "llama"),
        # CodeLlamaTokenizer has no such setting.
        legacy=False if _class(config, model) == _LLAMAS[1] else legacy,
        prefix_space=config.flag("add_prefix_space") if config.has("add_prefix_space") else None,
        is_gpt2=_class(config, model) == "GPT2Tokenizer",
        splits_special=config.flag("split_special_tokens"),
    )


def add_missing_tokens(
    tokenizer: tokenizers.Tokenizer, settings: Settings, where: str
) -> tuple[dict[int, int], frozenset[int]]:
    """Adds the added and named tokens of the settings that a vocabulary lacks.

    A token without an id gets the next free one, as in transformers. The tokenizers package assigns ids itself, and
    they may differ from those in the files.

    Args:
      tokenizer: the vocabulary; modified in place.
      settings: added and named tokens.
      where: file with which errors begin.

    Returns:
      The ids in the files by the package's ids, where they differ; and the package's ids of special tokens.

    Raises:
      InputError: the files and the vocabulary give a token different ids.
    """
    described = {token.content: token for token in settings.added_tokens}
    # Tokens without an id come in the order in which transformers assigns ids.
    wanted = {token.content: token for token in settings.added_tokens if token.id is not None}
    for token in settings.names.values():
        wanted[token.content] = dataclasses.replace(described.get(token.content, token), special=True)
    wanted |= {content: token for content, token in described.items() if content not in wanted}
    before = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known = {token.content: tokenizer.token_to_id(token.content) for token in settings.added_tokens}
    new = [_added_token(token) for token in wanted.values() if token.content not in before]
    if new:
        tokenizer.add_tokens(new)
    renumbered: dict[int, int] = {}
    for token in settings.added_tokens:
        held, had = tokenizer.token_to_id(token.content), known[token.content]
        if token.id is None or held is None or held == token.id:
            continue
        if had is not None:
            raise InputError(
                f"{where} gives the added token {token.content!r} the number {token.id}, but the vocabulary has it as "
                f"{had}: their files are of two models"
            )
        renumbered[held] = token.id
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    special |= {tokenizer.token_to_id(token.content) for token in wanted.values() if token.special}
    return renumbered, frozenset(i for i in special if i is not None)


def check_added_tokens(contents: Iterable[str], where: str, *, empty: bool = False) -> None:
    """Refuses added tokens that cannot be matched: too many, too long, or empty.

    Args:
      contents: texts of the tokens.
      where: file with which errors begin.
      empty: allows an empty token, if a later check refuses it; the package would match it everywhere in a text.

    Raises:
      InputError: the tokens exceed a limit, or one is empty.
    """
    contents = list(contents)
    if "" in contents and not empty:
        raise InputError(f"{where} has an added token without any text, which would be found everywhere")
    if len(contents) > _MAX_TOKENS:
        raise InputError(f"{where} has {len(contents):,} added tokens, which is more than {_MAX_TOKENS:,}")
    total, longest = sum(map(len, contents)), max(map(len, contents), default=0)
    if longest > _LONGEST_TOKEN or total > _MAX_CHARACTERS + _CHARACTERS_A_TOKEN * len(contents):
        raise InputError(
            f"{where} has added tokens of {total:,} characters, one of {longest:,}, and each has at most "
            f"{_LONGEST_TOKEN:,}"
        )


def _added_token(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
        normalized=token.normalized, special=token.special,
    )  # fmt: skip


def _decoder(config: Fields) -> list[AddedToken]:
    """Returns the tokens of `added_tokens_decoder` in the order of their ids."""
    section = config.section("added_tokens_decoder")
    if section is None:
        return []
    tokens = []
    for key in section.values:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise section.error(key, "is not the number of a token")
        entry = section.section(key)
        if entry is None:
            raise section.error(key, "is null, not an object")
        tokens.append(_parse_token(entry, int(key)))
    return sorted(tokens, key=lambda token: token.id or 0)


def _parse_token(entry: Fields, number: int | None, special: bool = False) -> AddedToken:
    special = entry.flag("special", special)
    return AddedToken(
        entry.text("content"), number, special,
        normalized=entry.flag("normalized", not special), lstrip=entry.flag("lstrip"),
        rstrip=entry.flag("rstrip"), single_word=entry.flag("single_word"),
    )  # fmt: skip


def _by_name(added: Fields) -> dict[str, int]:
    """Returns the ids of added_tokens.json by token, lowest first."""
    numbers = {}
    for token in added.values:
        if added.get(token) is None:
            raise added.error(repr(token), "is null, not a number")
        numbers[token] = added.integer(token, least=0)
    return dict(sorted(numbers.items(), key=lambda item: item[1]))


def _names(sources: Iterable[Fields]) -> dict[str, AddedToken]:
    """Returns special tokens by name, each from the first source that names it; "" counts as none."""
    found: dict[str, AddedToken] = {}
    for source in sources:
        for name in NAMES:
            token = _named(source, f"{name}_token")
            if token is not None and name not in found:
                found[name] = token
    return found


def _named(source: Fields, field: str) -> AddedToken | None:
    """Returns the special token in a field, which holds its text or an object; None if it is absent or empty."""
    if isinstance(source.get(field), dict):
        entry = source.section(field)
        token = None if entry is None else dataclasses.replace(_parse_token(entry, None, special=True), special=True)
    else:
        token = AddedToken(source.text(field, ""), special=True, normalized=False)
    return token if token is not None and token.content else None


def _extra(sources: Iterable[Fields]) -> list[AddedToken]:
    """Returns special tokens outside `NAMES`: listed ones, and fields `*_token` of a model's own."""
    tokens: dict[str, AddedToken] = {}
    for source in sources:
        for field in source.values:
            own = field.endswith("_token") and field.removesuffix("_token") not in NAMES
            token = _named(source, field) if own and isinstance(source.get(field), str | dict) else None
            if token is not None:
                tokens.setdefault(token.content, token)
        for field in _LISTS:
            for token in _listed(source, field):
                tokens.setdefault(token.content, token)
    tokens.pop("", None)
    return list(tokens.values())


def _listed(source: Fields, field: str) -> list[AddedToken]:
    value = source.get(field)
    items = list(value.values()) if isinstance(value, dict) else value if value is not None else []
    if not isinstance(items, list):
        raise source.error(field, "is not a list of tokens")
    tokens = []
    for item in items:
        if isinstance(item, dict):
            tokens.append(_parse_token(Fields(item, source.file, f"{source.prefix}{field}."), None, special=True))
        elif isinstance(item, str):
            tokens.append(AddedToken(item, special=True, normalized=False))
        else:
            raise source.error(field, "holds something that is neither text nor an object")
    return tokens


def _distinct(tokens: list[AddedToken], source: Fields) -> list[AddedToken]:
    check_added_tokens((token.content for token in tokens), str(source.file))
    for what, values in (("token", [m.content for m in tokens]), ("number", [m.id for m in tokens])):
        seen = set()
        for value in values:
            if value in seen:
                raise InputError(f"{source.file} has the {what} {value!r} of an added token twice")
            seen.add(value)
    return tokens


def _class(config: Fields, model: Fields) -> str:
    """Returns the transformers class that the folder names, without "Fast"; "" if it names none."""
    return (config.text("tokenizer_class", "") or model.text("tokenizer_class", "")).removesuffix("Fast")
