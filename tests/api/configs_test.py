"""Configs from Python: files with overrides that keep their types."""

from pathlib import Path

import places
import pytest
from ml_collections import ConfigDict, config_dict

import aligner_jax as aj
from aligner_jax.api.configs import as_config, name_of

QUICKSTART = places.ROOT / "configs" / "quickstart.py"


def test_a_file_gives_its_config():
    config = aj.load_config(QUICKSTART)
    assert isinstance(config, ConfigDict)
    assert (config.steps, config.data.batch_size) == (56, 1)


def test_overrides_by_dotted_names_set_fields_of_the_file_and_others():
    overrides = {"optim.lr": 1e-3, "steps": 20, "sweep.seed": (1, 2), "report.form": None, "data.system": "5"}
    config = aj.load_config(QUICKSTART, overrides)
    assert (config.optim.lr, config.steps, config.sweep.seed) == (1e-3, 20, (1, 2))
    assert config.report.form is None
    assert config.data.system == "5"
    assert config.optim.schedule == "cosine"


def test_text_stays_text_where_the_file_leaves_a_field_out():
    assert aj.load_config(QUICKSTART, {"mesh.topology": "1"}).mesh.topology == "1"
    assert aj.load_config(QUICKSTART, {"extra.name": "None"}).extra.name == "None"


def test_another_method_drops_the_options_of_the_files_method():
    config = aj.load_config(QUICKSTART, {"adapter.method": "lora", "adapter.rank": 4})
    assert config.adapter.to_dict() == {"method": "lora", "rank": 4}


@pytest.mark.parametrize("name", ["", "optim.", ".lr", 5])
def test_an_override_without_a_name_is_refused(name):
    with pytest.raises(aj.InputError, match=r"dotted name, such as 'optim\.lr'"):
        aj.load_config(QUICKSTART, {name: 1})


def test_a_missing_file_is_one_sentence(tmp_path: Path):
    with pytest.raises(aj.InputError, match=r"no\.py"):
        aj.load_config(tmp_path / "no.py")


def test_a_config_is_copied_so_that_the_callers_stays_as_it_was():
    given = {"data": {"path": "a"}}
    as_config(given)["data"]["path"] = "b"
    assert given == {"data": {"path": "a"}}
    config = ConfigDict(given)
    as_config(config)["data"]["path"] = "b"
    assert config.data.path == "a"
    with pytest.raises(aj.InputError, match=r"^config\.data\.path is not set, and the config requires it$"):
        as_config(ConfigDict({"data": {"path": config_dict.required_placeholder(str)}}))
    with pytest.raises(aj.InputError, match="of type list"):
        as_config([1])  # pyright: ignore[reportArgumentType]


def test_files_have_the_names_that_commands_give_their_folders():
    assert name_of("configs/quickstart.py") == "quickstart"
    assert name_of("configs/quickstart.py:sums,7") == "quickstart_sums_7"
    assert name_of({}) is None
