"""Tables as Markdown."""

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table. The first column is text, and the others are numbers."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def padded(row: Sequence[str]) -> str:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        return f"| {' | '.join(cells)} |"

    first, *others = widths
    rule = f"| {'-' * first} | {' | '.join('-' * (width - 1) + ':' for width in others)} |"
    return "\n".join([padded(header), rule, *map(padded, rows)]) + "\n"
