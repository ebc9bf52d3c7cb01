"""Folders of the tests, and the PYTHONPATH of the processes that they start."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
SUPPORT = TESTS / "support"
GOLDENS = TESTS / "goldens"
ROOT = TESTS.parent
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared"
"""Data that is not committed; tests that need it are skipped without it."""
PYTHONPATH = os.pathsep.join(map(str, (ROOT, SUPPORT)))
