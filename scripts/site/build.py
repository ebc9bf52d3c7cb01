"""Runs Sphinx on staged pages."""

import io
import re
import tomllib
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from scripts.site.stage import ROOT

_PLAIN = ("csv", "tsv", "txt")
"""Languages of code blocks that Pygments does not know; they are shown as they are."""


def build(source: Path, out: Path) -> str:
    """Writes the site of the pages in `source` to `out`.

    Returns:
      All warnings, one a line, with the files' paths below `source`; "" if there is none.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    warnings = io.StringIO()
    settings = {
        "project": project["name"],
        "html_title": project["name"],
        "extensions": ["myst_parser", "scripts.site.mathml"],
        "html_math_renderer": "mathml",
        "html_theme": "furo",
        "html_theme_options": {"navigation_with_keys": True},
        "html_copy_source": False,
        "html_show_copyright": False,
        "myst_enable_extensions": ["dollarmath"],
        "myst_heading_anchors": 4,
        "nitpicky": True,
        "smartquotes": False,
    }
    # Without this, a second build in one process finds its own directives registered already.
    with docutils_namespace():
        app = Sphinx(
            source, None, out, source / ".doctrees", "html", confoverrides=settings, status=None, warning=warnings
        )
        for language in _PLAIN:
            app.add_lexer(language, TextLexer)
        app.build()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", warnings.getvalue())
    return plain.replace(f"{source.resolve()}/", "").replace(f"{source}/", "").strip()
