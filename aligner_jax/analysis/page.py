"""Renders an analysis as one self-contained HTML page, which fetches no script, font or picture."""

import base64
import html
from collections.abc import Sequence

from aligner_jax.analysis.report import Picture, Section, Table, shown

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 960px; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1.5rem; }
img { width: 100%; height: auto; } figure { margin: 1.5rem 0; } figcaption, .note { color: #555; font-size: 14px; }
.table { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: 14px; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #e4e4e4; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } th { color: #555; }
summary { cursor: pointer; } nav a { margin-right: 1rem; }
"""


def render(title: str, sections: Sequence[Section]) -> str:
    """Returns the page as text. All text is escaped, and figures are embedded as SVG."""
    links = " ".join(f'<a href="#s{i}">{html.escape(section.title)}</a>' for i, section in enumerate(sections))
    parts = "\n".join(_section(i, section) for i, section in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<nav>{links}</nav>\n{parts}\n</body>\n</html>\n"
    )


def _section(number: int, section: Section) -> str:
    brief = [_table(table) for table in section.tables if table.brief]
    folded = [
        f"<details><summary>{html.escape(table.title)} ({len(table.rows):,} rows)</summary>{_table(table)}</details>"
        for table in section.tables
        if not table.brief
    ]
    heading = f'<h2 id="s{number}">{html.escape(section.title)}</h2>\n<p class="note">{html.escape(section.text)}</p>'
    return "\n".join([heading, *brief, *map(_picture, section.pictures), *folded])


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.svg).decode()
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}"><figcaption>{caption}</figcaption>'
        "</figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return (
        f'<div class="table"><table><caption>{html.escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cell(cell) -> str:
    text = html.escape(shown(cell))
    return f"<td>{text}</td>" if isinstance(cell, str) else f'<td class="number">{text}</td>'
