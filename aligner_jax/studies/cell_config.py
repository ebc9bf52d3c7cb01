"""The config of one run of compare_methods.py, from the file that it wrote: --config=scripts/compare_config.py:FILE."""

import json
from pathlib import Path

from ml_collections import ConfigDict


def get_config(path: str) -> ConfigDict:
    return ConfigDict(json.loads(Path(path).read_text()))
