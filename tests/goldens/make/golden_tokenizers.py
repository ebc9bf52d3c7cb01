"""Golden token ids from a pure-Python byte-level BPE; part of make_goldens.py, which is the command to run."""

import json
import math
from itertools import pairwise
from pathlib import Path

import regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Regular expressions by tokenizer.ggml.pre; each one splits the pieces of the one before.
PRE = {"smollm": [r"\p{N}|\P{N}+", GPT2], "gpt-2": [GPT2], "llama-bpe": [LLAMA3]}

TEXTS = [
    "The capital of France is",
    "Hello, world!",
    "In 1984, 3.14159 and 1,000,000 met 42.",
    "a  12   345 six7eight  9",
    "2024-11-22, 20241122 and 12345678; 2024 again",
    "It's they'll we've I'm you'd can't 'tis IT'S They'LL",
    "naïve café, coöperate; Ångström ﬁne",
    "e\u0301 is not é, and Z\u0335\u0353a\u0309lgo",
    "🙂👍🏽 family 👨‍👩‍👧 flag 🇫🇷!",
    "def f(x):\n    if x > 0:\n        return x ** 2\n\treturn None\n",
    "two  spaces   three    four     ",
    "   leading, trailing   ",
    "line\n\nparagraph\n\n\n  indented\r\nwindows\r\n",
    "\t\ttabs\tand \t mixed \n \n",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "text<|endoftext|>more <|im_end|> spaced <|im_start|>",
    "not special: <|im_start |> < |im_end|> <|IM_END|> |im_end|>",
    "东京是日本的首都。日本語のテキスト、한국어 문장.",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया",
    "half ½, squared x², Roman Ⅳ, Arabic-Indic ٣٤, full-width １２, circled ①",
    '{"answer": [1, 2.5, -3e10], "ok": true}',
    "https://example.org/a/b?c=1&d=%20#frag me@example.com",
    "snake_case camelCase SCREAMING_CASE kebab-case __init__",
    "no\u00a0break\u2003em\u3000ideographic\u200bzero",
    "!!!??? ... --- *** $100.00 50% (a) [b] {c} <d>",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "### Instruction:\nName three colours.\n\n### Response:",
    "\n",
    " ",
    "",
]


def byte_letters() -> list[str]:
    """Returns GPT-2's letter for each byte: the byte itself if printable, else the next code point from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


class Bpe:
    """Byte-level BPE in its simplest form: merges the pair of lowest rank until no pair is left."""

    def __init__(self, tokens: list[str], merges: list[str], special: list[str], pre: str):
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.special = regex.compile("(" + "|".join(map(regex.escape, sorted(special, key=len, reverse=True))) + ")")
        self.pre, self.letters = PRE[pre], byte_letters()

    def pieces(self, text: str) -> list[str]:
        """Returns pre-tokenized pieces, in GPT-2's byte letters."""
        found = [text]
        for pattern in self.pre:
            found = [match for piece in found for match in regex.findall(pattern, piece)]
        assert "".join(found) == text, f"pre-tokenization lost text: {text!r}"
        return ["".join(self.letters[byte] for byte in piece.encode()) for piece in found]

    def merge(self, piece: str) -> list[str]:
        parts = list(piece)
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, math.inf))
            if best not in self.ranks:
                break
            parts = join(parts, best)
        return parts

    def encode(self, text: str) -> list[int]:
        ids = []
        for i, run in enumerate(self.special.split(text)):
            parts = [run] if i % 2 else [part for piece in self.pieces(run) for part in self.merge(piece)]
            ids += [self.ids[part] for part in parts]
        return ids


def join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined, i = [], 0
    while i < len(parts):
        width = 2 if tuple(parts[i : i + 2]) == pair else 1
        joined.append("".join(parts[i : i + width]))
        i += width
    return joined


def train_bpe(special: list[str], count: int) -> tuple[list[str], list[str]]:
    """Learns a small vocabulary and its merges from TEXTS, split by each pre-tokenizer."""
    tokens, merges = [*special, *sorted(byte_letters())], []
    readers = [Bpe(tokens, [], special, pre) for pre in PRE]
    words = [list(piece) for reader in readers for text in TEXTS for piece in reader.pieces(text)]
    for _ in range(count):
        pairs: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(" ".join(best))
        if "".join(best) not in tokens:
            tokens.append("".join(best))
        words = [join(word, best) if best[0] in word else word for word in words]
    return tokens, merges


def check_with_tokenizers(bpe: Bpe, tokens: list[str], merges: list[str], special: list[str], name: str) -> None:
    """Checks the pure-Python ids against a tokenizer of the `tokenizers` package that is built by hand."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    pre = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), whole],
        "gpt-2": [whole],
        "llama-bpe": [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    }[name]
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    other = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    other.pre_tokenizer = pre_tokenizers.Sequence(pre)
    other.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    for text in TEXTS:
        assert other.encode(text).ids == bpe.encode(text), f"{name}: two implementations disagree on {text!r}"


def write_tokenizers(path: Path, smollm2: Path | None) -> None:
    """Writes ids of TEXTS under a small vocabulary for each pre-tokenizer and, given its GGUF, SmolLM2's."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens, merges = train_bpe(special, 300)
    cases = [{"text": text, "mini": {}} for text in TEXTS]
    for pre in PRE:
        bpe = Bpe(tokens, merges, special, pre)
        check_with_tokenizers(bpe, tokens, merges, special, pre)
        for case in cases:
            case["mini"][pre] = bpe.encode(case["text"])
    if smollm2:
        ids = smollm2_ids(smollm2)
    elif path.exists():
        ids = {case["text"]: case["smollm2"] for case in json.loads(path.read_text())["cases"]}
        assert ids.keys() == set(TEXTS), "the strings changed: --smollm2 is needed to renew SmolLM2's ids"
    else:
        raise SystemExit("a first run needs --smollm2, for SmolLM2's ids")
    for case in cases:
        case["smollm2"] = ids[case["text"]]
    mini = {"mini_tokens": tokens, "mini_merges": merges, "mini_special": special}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}," for key, value in mini.items()]
    rows = ",\n".join(json.dumps(case) for case in cases)
    path.write_text("\n".join(["{", *lines, '"cases": [', rows, "]", "}", ""]))
    counts = {pre: sum(len(case["mini"][pre]) for case in cases) for pre in PRE}
    print(f"{path.name}: {len(cases)} texts; tokens {counts}, SmolLM2 {sum(map(len, ids.values()))}")


def smollm2_ids(path: Path) -> dict[str, list[int]]:
    """Returns ids by text under the GGUF's vocabulary and merges."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    tokens, merges, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "token_type"))
    special = [token for token, kind in zip(tokens, types, strict=True) if kind != 1]
    pre = fields["tokenizer.ggml.pre"].contents()
    bpe = Bpe(tokens, merges, special, pre)
    check_with_tokenizers(bpe, tokens, merges, special, pre)
    return {text: bpe.encode(text) for text in TEXTS}
