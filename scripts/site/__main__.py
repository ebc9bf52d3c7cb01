"""Builds the documentation site.

    python -m scripts.site [--out=DIR]

Writes HTML to DIR, by default build/site, and needs no network: `python -m http.server --directory build/site` shows
it. A warning of Sphinx (a link to nowhere, a page that no table of contents has) is an error: every warning is
printed, and the exit status is 1.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from scripts.site.build import build
from scripts.site.stage import ROOT, stage

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m scripts.site", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="folder to write")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        stage(Path(folder))
        warnings = build(Path(folder), out)
    if warnings:
        sys.exit(warnings)
    print(f"written: {out / 'index.html'}")
