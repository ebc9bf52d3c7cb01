"""Chat templates: published ones with damaged characters and tokens, and with hostile constructs."""

import json
import pathlib
import random
import re

from aligner_jax.data.chat_template import render
from scripts.damage.kinds.kind import Files, Kind

FOLDER = pathlib.Path(__file__).parents[3] / "tests" / "goldens" / "chat_templates"
MESSAGES = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4 é"},
    {"role": "user", "content": "漢字"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
LARGE = ("10**9", "999999999", "10**30", "99999", "-1", "1e308", "2**31", "0", "none", "'9'*9", "true", "-10**9", "3")
TEXTS = (
    "'a'",
    "messages",
    "'%s'",
    "[1, 2]",
    "'{:>9}'",
    "messages[0].content",
    "'😀' * 1000",
    "{'a': 1}",
    "(1, 2)",
    "x",
    "ns",
    "''",
)
HOSTILE = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{BODY}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{BODY}{% endfor %}",
    "{% set ns = namespace(a=TEXT) %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=TEXT) %}{% for i in range(99) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a|length }}",
    "{% set ns = namespace(a=TEXT) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a OP }}",
    "{% set ns = namespace(a=TEXT) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ {ns.a: 1} }}",
    "{% set ns = namespace(a=TEXT) %}{% for i in range(60) %}{% set ns.a = {'x': ns.a, 'y': ns.a} %}{% endfor %}"
    "{{ ns.a == ns.a }}{{ ns.a|tojson }}",
    "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}{{ ns.a == ns }}",
    "{% set ns = namespace(a=2) %}{% for i in range(99) %}{% set ns.a = ns.a * ns.a %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=[]) %}{% for i in range(99999) %}{% set ns.a = ns.a + [TEXT ~ i] %}{% endfor %}",
    "{% set ns = namespace(a=[]) %}{% for i in range(99999) %}{% set ns.a = [ns.a, TEXT ~ i, {'k': i}] %}{% endfor %}",
    "{% set ns = namespace(a=TEXT) %}{% for i in range(99) %}{% set ns.a %}{{ ns.a }}{{ ns.a }}{% endset %}"
    "{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "{% macro f(n) %}{% if n %}{{ f(n[1:]) }}{{ f(n[1:]) }}BODY{% endif %}{% endmacro %}"
    "{{ f('abcdefghijklmnopqrstuvwxyzabcdef') }}",
    "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{{ loop([[1]]) }}{% endfor %}",
    "{{ TEXT * LARGE }}",
    "{{ (LARGE) * TEXT }}",
    "{{ '%*d' % (LARGE, 5) }}",
    "{{ '%999999999d' % 5 }}",
    "{{ '%.999999999f' % 5 }}",
    "{{ '%(a)999999999s' % {'a': 1} }}",
    "{{ '{:{}}'.format(1, LARGE) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{0!r:>999999999}'.format(TEXT) }}",
    "{{ TEXT.FILL(LARGE) }}",
    "{{ TEXT|center(LARGE) }}",
    "{{ TEXT|indent(LARGE, true, true) }}",
    "{{ TEXT|indent(TEXT * 999) }}",
    "{{ TEXT|batch(LARGE, 'x')|list }}",
    "{{ TEXT|slice(LARGE)|list|length }}",
    "{{ TEXT|replace('', TEXT * 99999) }}",
    "{{ (TEXT * 9999).replace('a', TEXT * 9999) }}",
    "{{ (TEXT * 999).join(messages|map(attribute='content')|list * 999) }}",
    "{{ range(LARGE)|join(TEXT) }}",
    "{{ range(99999)|map('string')|join(TEXT * 999) }}",
    "{{ range(99999)|list|tojson(indent=LARGE) }}",
    "{{ TEXT|tojson(separators=(TEXT * 9999, TEXT)) }}",
    "{{ (LARGE)|round(LARGE) }}",
    "{{ LARGE ** LARGE }}",
    "{{ 1 // 0 }}{{ 1e308 ** 2 }}",
    "{{ range(LARGE)|list|length }}",
    "{{ [[1]] * 9999|sum(start=[]) }}",
    "{{ (messages * 999)|sort(attribute='content')|groupby('role')|list }}",
    "{{ TEXT|format(LARGE, LARGE) }}",
    "{{ strftime_now('%' ~ LARGE ~ 'd') }}",
    "{{ strftime_now('%c' * 9999) }}",
    "{{ lipsum(n=LARGE) }}{{ cycler(1).next() }}{{ dict(a=1) }}{{ joiner(TEXT)() }}",
    "{{ raise_exception(TEXT * 9999) }}",
    "{% continue %}{% break %}",
    "{% include 'x' %}{% import 'x' as y %}{% extends 'x' %}",
    "{% autoescape true %}{{ TEXT|e|e|e|e|e }}{% endautoescape %}",
    "{% for i in range(999) %}{{ (TEXT * 999)|e }}{% endfor %}",
    "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}{{ TEXT.encode() }}{{ (5).to_bytes(LARGE) }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "1 + " * 3000 + "1 }}",
    "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "{{ [" * 50 + "]}}" * 50,
    "{{ " + "9" * 6000 + " }}",
    "{{ (TEXT * 99999).split() | length }}{{ (TEXT * 99999)|list|length }}",
    "{{ (TEXT * 99999)[::-1][::-1]|upper|lower|title|length }}",
    "{% for c in TEXT * 99999 %}{% for d in TEXT * 99999 %}{{ c < d }}{% endfor %}{% endfor %}",
    "{% for i in range(99999) if TEXT * 999 == TEXT * 999 %}{% endfor %}",
)
TOKEN = re.compile(r"\{%-?|-?%\}|\{\{-?|-?\}\}|\{#|#\}|'[^']*'|\w+|\s+|.", re.S)


def samples() -> list[Files]:
    """Returns a folder for every template."""
    return [{"t.jinja": path.read_bytes()} for path in sorted(FOLDER.glob("*.jinja"))]


def mutate(rng: random.Random, files: Files) -> Files:
    """Returns the template with one or two kinds of damage."""
    text = files["t.jinja"].decode()
    for _ in range(rng.choice((1, 1, 2))):
        text = rng.choice((_characters, _tokens, _tokens, _hostile, _hostile))(rng, text)
    return {"t.jinja": text.encode(errors="surrogatepass")}


def _characters(rng: random.Random, text: str) -> str:
    at, size = rng.randrange(len(text) + 1), 2 ** rng.randrange(9)
    change = rng.randrange(5)
    if change == 0:
        return text[:at] + text[at + size :]
    if change == 1:
        return text[: at + size] + text[at:]
    if change == 2:
        return text[:at] + rng.choice("{}%#-'\"()[]|.,:=~*+\\\n\0é😀 0") + text[at + 1 :]
    if change == 3:
        return text[:at]
    return text[:at] + "".join(chr(rng.randrange(32, 300)) for _ in range(size % 40)) + text[at:]


def _tokens(rng: random.Random, text: str) -> str:
    tokens = TOKEN.findall(text) or [" "]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other = rng.randrange(len(tokens)), rng.randrange(len(tokens))
        change = rng.randrange(6)
        if change == 0:
            tokens[at], tokens[other] = tokens[other], tokens[at]
        elif change == 1:
            tokens[at] = tokens[other]
        elif change == 2:
            tokens[at] = ""
        elif change == 3:
            tokens[at] += tokens[other]
        elif change == 4:
            tokens[at] = rng.choice((*LARGE, *TEXTS))
        else:
            tokens[at:at] = tokens[other : other + rng.randrange(1, 40)]
    return "".join(tokens)


def _hostile(rng: random.Random, text: str) -> str:
    written = rng.choice(HOSTILE)
    while (place := re.search(r"TEXT|LARGE|BODY|FILL| OP", written)) is not None:
        choices = {
            "TEXT": TEXTS, "LARGE": LARGE, "BODY": ("", "{{ i }}", "{{ 'x' * 99 }}", "{% set a = [1, 2] %}", "text"),
            "FILL": ("ljust", "rjust", "center", "zfill"),
            " OP": ("", "|tojson", "|string", " == [ns.a, ns.a]", "|sort", "|join", " in [ns.a]", "|length", " ~ 'x'"),
        }  # fmt: skip
        written = written[: place.start()] + rng.choice(choices[place[0]]) + written[place.end() :]
    tokens = re.split(r"(?<=\}\})|(?<=%\})", text)
    tokens.insert(rng.randrange(len(tokens) + 1), written)
    return "".join(tokens)


def read(folder: pathlib.Path) -> str:
    """Renders with and without the generation prompt."""
    template = (folder / "t.jinja").read_bytes().decode(errors="surrogateescape")
    return json.dumps([render(template, MESSAGES, prompts, TOKENS) for prompts in (False, True)])


def may_differ(before: Files, after: Files) -> bool:
    """Returns True if the text differs: any other text is another template."""
    return True


KIND = Kind("template", samples, mutate, read, may_differ)
