"""Finished results stay: truncated lines, other runs, damage."""

from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.evals.result_store import ResultStore

FROM = {"base": "abc", "limit": None, "options": {"names": ("a", "b")}}


def test_what_is_added_is_there_for_the_next(tmp_path: Path):
    path = tmp_path / "folder" / "store.jsonl"
    store = ResultStore(path, FROM)
    assert not path.exists()
    store.add({"1": [-1.5, True], "2": "text\u2028with\nlines"})
    store.add({"3": {"x": (1, 2)}})
    assert store["3"] == {"x": [1, 2]}
    again = ResultStore(path, FROM)
    assert len(again) == len(store) == 3
    assert (again["1"], again["2"], again["3"]) == ([-1.5, True], "text\u2028with\nlines", {"x": [1, 2]})
    assert "4" not in again


@pytest.mark.parametrize("lost", [1, 9, 40])
def test_a_line_that_a_kill_tore_is_removed_and_nothing_else(tmp_path: Path, lost: int):
    path = tmp_path / "store.jsonl"
    store = ResultStore(path, FROM)
    store.add({"1": "one"})
    whole = path.read_bytes()
    store.add({"2": "two, and that is a longer line than the first"})
    path.write_bytes(path.read_bytes()[:-lost])
    again = ResultStore(path, FROM)
    assert "1" in again
    assert "2" not in again
    assert path.read_bytes() == whole
    again.add({"2": "two"})
    assert len(ResultStore(path, FROM)) == 2


def test_even_the_first_line_may_be_torn(tmp_path: Path):
    path = tmp_path / "store.jsonl"
    path.write_text('{"made_fr')
    ResultStore(path, FROM).add({"1": 1})
    assert ResultStore(path, FROM)["1"] == 1


def test_another_run_is_refused_by_what_differs(tmp_path: Path):
    path = tmp_path / "store.jsonl"
    ResultStore(path, FROM).add({"1": 1})
    with pytest.raises(InputError, match=r"jsonl was made with another base and another limit; give another fold"):
        ResultStore(path, {**FROM, "base": "abd", "limit": 3})
    with pytest.raises(InputError, match="another seed"):
        ResultStore(path, {**FROM, "seed": 0})


@pytest.mark.parametrize("content", ['{"prompt": "mine"}', "mine\nand no end", '{"made_from": 3}\n{"ke', '["made_f'])
def test_a_file_of_somebody_elses_loses_nothing(tmp_path: Path, content: str):
    path = tmp_path / "store.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=r"store.jsonl:1 is not a line that an evaluation writes"):
        ResultStore(path, FROM)
    assert path.read_text() == content
    ResultStore(tmp_path / "other.jsonl", {"base": "other"}).add({"1": 1})
    torn = (tmp_path / "other.jsonl").read_text() + '{"key'
    path.write_text(torn)
    with pytest.raises(InputError, match=r"store.jsonl was made with another base"):
        ResultStore(path, FROM)
    assert path.read_text() == torn


@pytest.mark.parametrize(
    "line",
    [
        "no JSON", "[1]", '{"value": 1}', '{"key": "1"}', '{"key": 1, "value": 1}', "[" * 20_000,
        '{"key": "1", "value": ' + "9" * 5000 + "}", '{"key": "1", "value": ' + '{"a":' * 20_000,
        '{"key": "1", "value": 1, "value": 2}', "\x00" * 9,
    ],
    ids=lambda line: line[:25],
)  # fmt: skip
def test_damage_is_named_by_its_line(tmp_path: Path, line: str):
    path = tmp_path / "store.jsonl"
    ResultStore(path, FROM).add({"1": 1})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"store.jsonl:3 is not a line that an evaluation writes"):
        ResultStore(path, FROM)


def test_a_folder_in_the_way_is_one_sentence(tmp_path: Path):
    with pytest.raises(InputError, match=r"is a folder, not a file$"):
        ResultStore(tmp_path, FROM)


def test_halves_of_surrogate_pairs_are_kept(tmp_path: Path):
    """A path that is not UTF-8 has surrogates, and older versions wrote them as three bytes."""
    path = tmp_path / "store.jsonl"
    ResultStore(path, {"path": "w\udcff"}).add({"1": "\ud800"})
    path.read_text(encoding="utf-8")
    assert ResultStore(path, {"path": "w\udcff"})["1"] == "\ud800"
    path.write_bytes(path.read_bytes().replace(rb"\ud800", "\ud800".encode(errors="surrogatepass")))
    assert ResultStore(path, {"path": "w\udcff"})["1"] == "\ud800"


def test_a_device_is_not_read(tmp_path: Path):
    (tmp_path / "store.jsonl").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"store\.jsonl is a device or a pipe, not a file$"):
        ResultStore(tmp_path / "store.jsonl", FROM)
