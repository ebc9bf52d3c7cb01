"""Chat templates: benign ones render as transformers renders them, and all others end soon with one sentence."""

import json
import time

import places
import pytest

from aligner_jax.data.chat_template import MAX_CHARACTERS, render
from aligner_jax.errors import InputError

FOLDER = places.GOLDENS / "chat_templates"
GOLDENS = json.loads((FOLDER / "expected.json").read_text())
TEMPLATES = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.jinja"))}
HELLO = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("row", GOLDENS["rows"], ids=lambda row: " ".join(map(str, list(row.values())[:3])))
def test_templates_render_as_in_transformers(row):
    messages = GOLDENS["conversations"][row["conversation"]]
    arguments = TEMPLATES[row["template"]], messages, row["prompts"], GOLDENS["tokens"]
    if row["text"] is None:
        with pytest.raises(InputError, match="refuses the conversation"):
            render(*arguments)
    else:
        assert render(*arguments) == row["text"]


DOUBLED = "{% set ns = namespace(a='aaaaaaaaaa') %}{% for i in range(60) %}{% set ns.a = STEP %}{% endfor %}"
KEPT = "{% for i in range(99999) %}{% set ns.a = [ns.a, 'x' ~ i, {'a': i}] %}{% endfor %}"
HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that print": "{% for i in range(99999) %}{% for j in range(99999) %}text{% endfor %}{% endfor %}",
    "loops with a condition": "{% for i in range(99999) if range(99999)|list == range(99999)|list %}{% endfor %}",
    "a repeated text": "{{ 'a' * (10**9) }}",
    "a text repeated beyond all memory": "{{ 'a' * 10**11 }}",
    "a repeated list": "{{ ([1] * 10**9)|length }}",
    "a width from the values": "{{ '%*d' % (10**9, 5) }}",
    "a width": "{{ '%999999999d' % 5 }}",
    "a precision": "{{ '%.999999999f' % 5 }}",
    "the filter format": "{{ '%999999999d'|format(5) }}",
    "str.format": "{{ '{:999999999}'.format(1) }}",
    "str.format with a width from the values": "{{ '{:{}}'.format(1, 10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "center": "{{ 'a'|center(10**9) }}",
    "indent": "{{ ('a\n' * 9999)|indent('b' * 99999, true) }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list|length }}",
    "slice": "{{ [1]|slice(10**9)|list|length }}",
    "replace": "{{ ('a' * 9999).replace('a', 'b' * 99999) }}",
    "the filter replace": "{{ ('a' * 9999)|replace('', 'b' * 99999) }}",
    "join": "{{ range(99999)|join('b' * 99999) }}",
    "str.join": "{{ ('b' * 99999).join(['a'] * 9999) }}",
    "tojson": "{{ (['a'] * 9999)|tojson(indent=10**9) }}",
    "tojson's separators": "{{ (['a'] * 9999)|tojson(separators=('b' * 99999, ':')) }}",
    "round": "{{ 1.5|round(10**9) }}",
    "sum of lists": "{{ ([[1]] * 99999)|sum(start=[])|length }}",
    "strftime": "{{ strftime_now('%999999999d') }}",
    "doubling by ~": DOUBLED.replace("STEP", "ns.a ~ ns.a"),
    "doubling by +": DOUBLED.replace("STEP", "ns.a + ns.a"),
    "doubling by a block": DOUBLED.replace("{% set ns.a = STEP %}", "{% set ns.a %}{{ ns.a }}{{ ns.a }}{% endset %}"),
    "printing lists in lists": DOUBLED.replace("STEP", "[ns.a, ns.a]") + "{{ ns.a }}",
    "hashing lists in lists": DOUBLED.replace("STEP", "(ns.a, ns.a)") + "{{ {ns.a: 1}|length }}",
    "writing lists in lists": DOUBLED.replace("STEP", "[ns.a, ns.a]") + "{{ ns.a|tojson }}",
    "comparing lists in lists": DOUBLED.replace("STEP", "[ns.a, ns.a]")
    + "{% set a = ns.a %}" + DOUBLED.replace("STEP", "[ns.a, ns.a]") + "{{ a == ns.a }}",
    "a list that is kept": "{% set ns = namespace(a=[]) %}" + KEPT + KEPT,
    "squares": DOUBLED.replace("'aaaaaaaaaa'", "2").replace("STEP", "ns.a * ns.a") + "{{ ns.a }}",
    "a power": "{{ 10 ** 10**9 }}{{ 10 ** 9999999 }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a block that is in itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "a recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "lipsum": "{{ lipsum(n=100000)|length }}",
    "a large range": "{{ range(10**9) }}",
    "division by zero": "{{ 1 // 0 }}",
    "overflow": "{{ 1e308 ** 2 }}",
    "continue outside a loop": "{% continue %}",
    "brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "a long sum": "{{ " + "1 + " * 3000 + "1 }}",
    "nested conditions": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "a long number": "{{ " + "9" * 6000 + " }}",
    "a namespace that holds itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "an error message that is long": "{{ raise_exception('a' * 999999) }}",
    "another file": "{% include 'x' %}",
    "Python's internals": "{{ ''.__class__.__mro__ }}",
    "a method that templates have no use for": "{{ (5).to_bytes(10**9, 'big') }}",
    "arguments out of a list": "{% for i in range(99999) %}{% set a = cycler(*range(99999)) %}{% endfor %}",
    "arguments of a macro": (
        "{% macro f() %}{{ varargs|length }}{% endmacro %}{% for i in range(99999) %}{{ f(*range(9999)) }}{% endfor %}"
    ),
    "arguments out of a dict": (
        "{% set d = dict(range(9999)|map('string')|batch(2)) %}"
        "{% for i in range(99999) %}{% set a = namespace(**d) %}{% endfor %}"
    ),
    "an attribute's path": "{{ (['a'] * 99999)|map(attribute='0.' * 9999 ~ '0')|list|length }}",
    "many attributes": "{{ (['a'] * 9999)|sort(attribute='0,' * 9999 ~ '0')|length }}",
    "a search from the end": "{{ ('a' * 999999).rfind('ab' ~ 'a' * 499999) }}",
    "strip": "{{ ('a' * 999999).strip('b' * 999999 ~ 'a') }}",
    "trim": "{{ ('a' * 999999)|trim('b' * 999999 ~ 'a') }}",
    "title": "{{ ('ab-' * 1200000)|title|length }}",
    "wordcount": "{{ ('ab-' * 1200000)|wordcount }}",
    "parts of a field": "{% for i in range(99999) %}{% set a = ('{0' ~ '[0]' * 99999 ~ '}').format('a') %}{% endfor %}",
    "a range that is searched": "{% for i in range(99999) %}{% set a = 'a' in range(99999) %}{% endfor %}",
    "a range that is summed up": "{% for i in range(99999) %}{% set a = range(99999)|sum %}{% endfor %}",
    "values that are searched": (
        "{% set d = dict(range(9999)|batch(2)) %}"
        "{% for i in range(99999) %}{% for j in range(9) %}{% set a = 'a' in d.values() %}{% endfor %}{% endfor %}"
    ),
    "a large number as it stands": "{{ 0x" + "f" * 9000 + " % 0x" + "f" * 4500 + " }}",
    "names in scoped blocks": (
        "".join(f"{{% set a{i} = 1 %}}" for i in range(1500))
        + "".join(f"{{% block b{i} scoped %}}{{% endblock %}}" for i in range(1000))
    ),
    "names in what is included": (
        "".join(f"{{% set a{i} = 1 %}}" for i in range(1500)) + "{% include 'x' ignore missing %}" * 1500
    ),
    "too long": "a" * (MAX_CHARACTERS + 1),
    "too many parts": "{{ a }}" * 14_000,
}  # fmt: skip


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_no_template_runs_long_or_raises_anything_else(template):
    begun = time.process_time()
    with pytest.raises(InputError, match="the chat template") as refused:
        render(template, HELLO, True, {})
    assert len(str(refused.value)) <= 400
    assert time.process_time() - begun < 5


def test_a_longer_conversation_may_cost_more():
    """The cost is quadratic in the messages, as in some published templates; no benign conversation is refused."""
    template = (
        "{% set ns = namespace(out='') %}{% for m in messages %}{% for n in messages[loop.index0:] %}"
        "{% if n.role == m.role and n is mapping %}{% endif %}{% endfor %}"
        "{% set ns.out = ns.out + m.content %}{% endfor %}{{ ns.out }}"
    )
    messages = [{"role": "user", "content": "Some words é. " * 100}] * 200
    assert render(template, messages, False, {}) == "Some words é. " * 100 * 200


def test_what_is_charged_does_not_outlive_a_rendering():
    template = "{% for i in range(20000) %}{% set a = 'a' ~ i %}{% endfor %}{{ messages|length }}"
    assert [render(template, HELLO, False, {}) for _ in range(5)] == ["1"] * 5
