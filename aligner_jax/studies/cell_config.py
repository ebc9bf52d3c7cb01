"""The config of one run of a cell, from the file that was written for it: --config=PATH/cell_config.py:FILE."""

import json
from pathlib import Path

from ml_collections import ConfigDict


def get_config(path: str) -> ConfigDict:
    return ConfigDict(json.loads(Path(path).read_text()))
