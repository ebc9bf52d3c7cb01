"""aligner_jax/studies/ledger.py: results are kept with the settings that made them."""

import math
from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.studies.ledger import Ledger

SETTINGS = {"base": "abc", "run": {"rate": 0.02, "seed": 1}}


def test_a_result_is_read_as_it_was_written(tmp_path: Path):
    ledger = Ledger(tmp_path / "runs")
    assert ledger.get("form/json/a", SETTINGS) is None
    ledger.put("form/json/a", SETTINGS, {"loss": math.nan, "each": [1.5, math.inf], "text": "x"})
    assert "NaN" not in ledger.path("form/json/a").read_text()
    found = ledger.get("form/json/a", SETTINGS)
    assert found is not None
    assert math.isnan(found["loss"])
    assert found["each"][0] == 1.5
    assert math.isnan(found["each"][1])
    assert found["text"] == "x"


def test_a_result_of_other_settings_is_refused_by_name(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.put("a", SETTINGS, {"loss": 1.0})
    with pytest.raises(InputError, match=r"a\.json was made with other settings \(run\.rate is 0\.1 and was 0\.02\)"):
        ledger.get("a", {"base": "abc", "run": {"rate": 0.1, "seed": 1}})


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"settings": 1, "result": {}}', '{"settings": {}}', "\ud800"])
def test_a_damaged_file_is_named(text: str, tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.path("a").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"a\.json cannot be used \(\w+\): remove it"):
        ledger.get("a", SETTINGS)
