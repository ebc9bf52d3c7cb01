"""Config files and data are found by their names in the repository, from any folder."""

from pathlib import Path

import places
import pytest

from aligner_jax.errors import InputError
from aligner_jax.files import config_files
from aligner_jax.files.config_files import config_names, configs_folder, find_config, find_packaged


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "aligner_jax/configs/quickstart.py", "configs/quickstart.py", "quickstart.py", "quickstart",
        "configs/quickstart", "eval/quick", "configs/eval/quick.py", "./configs/eval/quick.py",
    ],
)  # fmt: skip
def test_a_name_is_found_from_any_folder(name: str):
    found = find_config(name)
    assert found == places.CONFIGS / ("eval/quick.py" if "eval" in name else "quickstart.py")


def test_a_file_of_the_current_folder_comes_first(tmp_path: Path):
    for name in ("quickstart", "configs/quickstart.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert find_config(name) == Path(name)


def test_a_folder_of_that_name_is_no_config(tmp_path: Path):
    (tmp_path / "quickstart").mkdir()
    assert find_config("quickstart") == places.CONFIGS / "quickstart.py"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quikstart", "did you mean quickstart"),
        ("configs/eval/qick.py", "did you mean eval/quick"),
        ("/configs/quickstart.py", "did you mean"),
        ("configs/../configs/quickstart.py", "did you mean"),
        ("nothing_like_it_" * 10, "such as quickstart, llama7b_alpaca or eval/quick"),
    ],
)
def test_a_missing_file_is_one_sentence_with_a_name_that_exists(name: str, hint: str):
    with pytest.raises(InputError, match=rf"^config file .* does not exist; .*{hint}"):
        find_config(name)


def test_another_folder_is_said_to_be_one(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match=r"^config file mine is a folder; give a file, or a name that the package has"):
        find_config("mine")


def test_every_config_is_listed_by_name():
    assert {"quickstart", "llama7b_alpaca", "eval/quick"} <= set(config_names())
    assert len(config_names()) == len(list(places.CONFIGS.rglob("*.py")))


def test_a_wheel_has_the_configs_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "site-packages" / "aligner_jax"
    (package / "configs" / "eval").mkdir(parents=True)
    (package / "configs" / "eval" / "mine.py").touch()
    monkeypatch.setattr(config_files, "_PACKAGE", package)
    assert configs_folder() == package / "configs"
    assert config_names() == ["eval/mine"]
    assert find_config("aligner_jax/configs/eval/mine.py") == package / "configs" / "eval" / "mine.py"


def test_data_of_the_package_are_found_from_any_folder(tmp_path: Path):
    name = "aligner_jax/data/quickstart/train.jsonl"
    assert find_packaged(name) == places.ROOT / name
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    assert find_packaged(name) == Path(name)


@pytest.mark.parametrize("name", ["train.jsonl", "aligner_jax/none.jsonl", "aligner_jax/data/../../README.md", "/x"])
def test_other_paths_stay_as_they_are(name: str):
    assert find_packaged(name) == Path(name)
