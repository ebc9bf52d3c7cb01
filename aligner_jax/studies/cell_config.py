"""Loads the config of one run of a cell from its JSON file: --config=PATH/cell_config.py:FILE."""

import json
from pathlib import Path

from ml_collections import ConfigDict


def get_config(path: str) -> ConfigDict:
    return ConfigDict(json.loads(Path(path).read_text()))
