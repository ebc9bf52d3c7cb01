"""Typed fields: valid types and ranges pass, and every other value is refused in one sentence."""

import pytest

from aligner_jax.errors import InputError
from aligner_jax.files.content import read_bytes
from aligner_jax.files.fields import Fields, read_fields
from aligner_jax.files.json_text import parse_json

NAN, INF = float("nan"), float("inf")


def fields(value: object) -> Fields:
    return Fields({"x": value}, "a.json", "of.")


@pytest.mark.parametrize("value", [True, 1.0, "1", [1], {}, 0, -1, 2**31, 10**400, NAN])
def test_no_positive_integer(value):
    with pytest.raises(InputError, match=r"^a\.json: of\.x is .*, not a positive integer"):
        fields(value).integer("x")


@pytest.mark.parametrize("value", [True, "1.5", [1.5], {}, 0, 0.0, -1.5, NAN, INF, -INF, 1e31, 1e-31, 10**400])
def test_no_positive_number(value):
    with pytest.raises(InputError, match=r"^a\.json: of\.x is .*, not a positive number"):
        fields(value).number("x")


@pytest.mark.parametrize("value", [0, 1, "no", "true", 0.0, [], {}])
def test_no_flag(value):
    with pytest.raises(InputError, match=r"^a\.json: of\.x is .*, not true or false"):
        fields(value).flag("x")


@pytest.mark.parametrize("value", [1, True, ["a"], {}])
def test_no_text(value):
    with pytest.raises(InputError, match=r"^a\.json: of\.x is .*, not text"):
        fields(value).text("x")


@pytest.mark.parametrize("value", [["a", 1], "ab", {"a": 1}, [None]])
def test_no_texts(value):
    with pytest.raises(InputError, match=r"^a\.json: of\.x is .*, not a list of texts"):
        fields(value).texts("x")


@pytest.mark.parametrize("value", [[1, True], [0], 1, [1.0], [2**31]])
def test_no_integers(value):
    with pytest.raises(InputError, match=r"^a\.json: of\.x is .*, not a list of integers"):
        fields(value).integers("x")


@pytest.mark.parametrize("value", [[], "{}", 1, True])
def test_no_section(value):
    with pytest.raises(InputError, match=r"^a\.json: of\.x is .*, not an object"):
        fields(value).section("x")


def test_what_is_right_passes():
    assert fields(3).integer("x") == 3
    assert fields(0).integer("x", least=0) == 0
    assert type(fields(3).number("x")) is float
    assert fields(-0.5).number("x", least=-1) == -0.5
    assert fields(False).flag("x", default=True) is False
    assert fields("a").choice("x", ("a", "b")) == "a"
    assert fields(["a"]).texts("x") == ["a"]
    assert fields([2]).integers("x") == [2]
    inner = fields({"y": 1}).section("x")
    assert inner is not None
    with pytest.raises(InputError, match=r"^a\.json: of\.x\.z is missing"):
        inner.integer("z")


@pytest.mark.parametrize("name", ["integer", "number", "text"])
def test_what_is_missing_is_named_or_has_its_default(name):
    with pytest.raises(InputError, match=r"^a\.json: of\.x is missing"):
        getattr(fields(None), name)("x")
    assert getattr(fields(None), name)("x", 7) == 7


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ("[" * 200 + "]" * 200, "it is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "too many digits"),
        ('{"a": 1, "b": 2, "a": 3}', "the field 'a' twice"),
        ("[" + "[]," * 300_000 + "[]]", "it has more than 500,000 values"),
        ("{" + ", ".join(f'"{i}": 0' for i in range(200_000)) + ', "7": 1}', "the field '7' twice"),
        ('{"a": 1,\n "b": }', "a.json:2 is not JSON: Expecting value (column 7)"),
        ("", "a.json is not JSON"),
    ],
)
def test_json_that_cannot_be_read(text, sentence):
    with pytest.raises(InputError) as caught:
        parse_json(text, "a.json")
    assert str(caught.value).startswith("a.json")
    assert sentence.removeprefix("a.json") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[1]", "is not a JSON object"),
        (b'{"a": "\xff"}', ":1 is not UTF-8 text"),
        (b"{" + b" " * 2**24, "has 16,777,217 bytes, but a file of its kind has at most"),
    ],
)
def test_files_that_hold_no_fields(content, sentence, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_fields(tmp_path / "a.json")
    assert f"a.json{'' if sentence.startswith(':') else ' '}{sentence}" in str(caught.value)


def test_what_is_no_file(tmp_path):
    for path, sentence in [
        (tmp_path / "none.json", "there is no file"),
        (tmp_path, "is a folder, not a file"),
        ("/dev/zero", "is a device or a pipe, not a file"),
        ("a\0b", "null byte"),
        (tmp_path / ("x" * 5000), "cannot be read"),
    ]:
        with pytest.raises(InputError, match=sentence):
            read_fields(path)


def test_files_without_a_size_are_read_up_to_the_limit(tmp_path):
    assert read_bytes("/proc/self/cmdline", most=2**16)
    with pytest.raises(InputError, match="has more than 3 bytes"):
        read_bytes("/proc/self/cmdline", most=3)
    (tmp_path / "a").write_bytes(b"abc")
    assert read_bytes(tmp_path / "a", most=3) == b"abc"
