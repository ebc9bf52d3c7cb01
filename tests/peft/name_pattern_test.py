"""Patterns of module names: equal to Python's `re` where both accept, and finite where `re` never finishes."""

import contextlib
import random
import re
import time

import pytest

from aligner_jax.peft.name_pattern import NamePattern, PatternError

NAMES = [
    f"model.layers.{layer}.{module}"
    for layer in (0, 3, 17, 100)
    for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj")
] + ["lm_head", "model.embed_tokens", "model.layers.1.self_attn", "a", "model.visual.blocks.0.attn.q_proj"]


@pytest.mark.parametrize(
    "pattern",
    [
        r".*",
        r".*\.(q|k|v|o|gate|up|down)_proj",
        r".*(self_attn|mlp).*(q_proj|down_proj)$",
        r"^(?!.*(visual|lm_head)).*(?:q_proj|v_proj)$",
        r"^(model\.layers(?=\.).*\.(down_proj|v_proj))$",
        r"model\.layers\.\d+\.self_attn\.[qv]_proj",
        r"model\.layers\.[0-9]{1,2}\.mlp\..+",
        r"model\.layers\.(?:[0-9]|1[0-7])\.self_attn\.q_proj",
        r"(?:.*?(?:language|text).*?(?:self_attn|attn).*?(?:q_proj|v_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attn)\.(?:(?:q_proj|v_proj)))",
        r"(?P<layer>model\.layers\.\d+)\.mlp\.(?P<module>\w+)",
        r"[^.]+",
        r"a?",
        r"(a|)",
        r"\Amodel.*\Z",
        r".*\.q_proj|.*\.v_proj",
        r"",
    ],
)
def test_what_peft_users_write_means_what_re_says(pattern: str):
    found, expected = NamePattern(pattern), re.compile(pattern)
    assert [name for name in NAMES if found.matches(name)] == [name for name in NAMES if expected.fullmatch(name)]


def drawn(rng: random.Random, depth: int) -> str:
    """Returns a random text, usually a valid pattern."""

    def inner() -> str:
        return drawn(rng, depth - 1)

    match rng.randrange(13 if depth else 6):
        case 0 | 1:
            return rng.choice(("a", "b", "q_", "0", "\\.", ".", "x", "-"))
        case 2 | 3:
            return rng.choice(("\\d", "\\w", "\\s", "\\D", "\\W", "\\S", "\\b", "^", "$", "\\A", "\\Z"))
        case 4:
            return rng.choice(
                ("[ab]", "[^a.]", "[0-9a-c]", "[\\d_]", "[^\\W]", "[-a]", "[a-]", "[]a]", "[^]a]", "[$^|]")
            )
        case 5:
            return ""
        case 6 | 7:
            return inner() + inner() + inner()
        case 8:
            return f"({inner()}|{inner()})"
        case 9 | 10:
            repeat = rng.choice(
                ("*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{1,}", "{0}", "{0,1}?", "{,}")
            )
            return f"{rng.choice(('(', '(?:'))}{inner()}){repeat}"
        case 11:
            return f"(?{rng.choice('=!')}{inner()})"
        case _:
            return f"{inner()}|{inner()}"


def test_random_patterns_mean_what_re_says():
    rng = random.Random(7)
    compared = matched = 0
    for number in range(6000):
        pattern = drawn(rng, 4) if number % 4 else "".join(rng.choices("ab.^$*+?{}[]\\|()0-,=!:<>Pdwsbq1", k=8))
        try:
            ours = NamePattern(pattern)
        except PatternError:
            continue
        expected = re.compile(pattern)
        for _ in range(6):
            name = "".join(rng.choices("ab0q_.x-\n1", k=rng.randrange(1, 8)))
            theirs = expected.fullmatch(name) is not None
            assert ours.matches(name) == theirs, (pattern, name)
            compared += 1
            matched += theirs
    assert compared > 20_000
    assert matched > 1000


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", "missing )"),
        (")", "unbalanced parenthesis"),
        ("a)", "unbalanced parenthesis"),
        ("[a", "ends too early"),
        ("a\\", "ends too early"),
        ("*a", "has nothing before it"),
        ("a**", "repeated, or possessive"),
        ("a*+", "repeated, or possessive"),
        ("a{2}{3}", "has nothing before it"),
        ("a{3,2}", "from fewer to more"),
        ("a{1001}", "at most 1000"),
        ("a{9999999999999}", "has nothing before it"),
        ("a{x}", "has nothing before it"),
        ("^*", "a position cannot be repeated"),
        ("(a)\\1", "\\1 is not supported"),
        ("\\Bx", "\\B is not supported"),
        ("(?i)a", "group of this kind"),
        ("(?<=a)b", "group of this kind"),
        ("(?>a)", "group of this kind"),
        ("(?P<a>x)(?P<a>y)", "two groups have the name 'a'"),
        ("[z-a]", "ends before it begins"),
        ("[\\w-a]", "has no end"),
        ("[[a]", "should be escaped"),
        ("(" * 20_000 + ")" * 20_000, "more than 40 groups"),
        ("a" * 100_001, "of at most 100,000"),
    ],
)
def test_what_is_not_supported_says_so(pattern: str, problem: str):
    with pytest.raises(PatternError, match=re.escape(problem)):
        NamePattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(([a-z0-9._]+)+)+!",
        r"(.*)*(.*)*(.*)*x",
        "(" * 39 + ".*" + ")*" * 39 + "!",
        "(a|b|.|..|...)*" * 2000,
        "(?=.*x)" * 9000 + ".*",
        "((.{1,900}){1,900}){1,900}x",
        "(((a?){1000}){1000}){1000}x",
        "|" * 99_999,
        "a" * 100_000,
    ],
)
def test_nothing_hangs(pattern: str):
    begun = time.monotonic()
    with contextlib.suppress(PatternError):
        found = NamePattern(pattern)
        for name in NAMES * 100:
            found.matches(name)
    # It takes 3 s on this machine, beside other work.
    assert time.monotonic() - begun < 60
