"""docs/layout.md names every folder and every command of the package."""

import re

import doc_pages
import places

PACKAGE = places.ROOT / "aligner_jax"


def test_every_folder_and_command_is_named():
    tree = doc_pages.read("docs/layout.md").split("\n\n")[1]
    named = set(re.findall(r"(?<![\w/])\w+(?:/|\.py)(?=\s)", tree))
    there = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    there |= {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("_")}
    assert there <= named
    assert {name for name in named if name.endswith(".py")} <= there
