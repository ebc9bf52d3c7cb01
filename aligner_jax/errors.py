"""The exception for invalid input, with a message that fits one line."""

import re

MAX_CHARACTERS = 400
_LONGEST_WORD = 160
_CUT = " … "


class InputError(ValueError):
    """Invalid input; the message is one sentence that names the file, line, field or tensor.

    The message is one line of at most `MAX_CHARACTERS`, whatever the input holds; see `one_line`. The commands print
    it and exit with status 1. Any other exception is a bug and keeps its traceback.
    """

    def __init__(self, message: object) -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str, most: int = MAX_CHARACTERS) -> str:
    """Returns `text` as one printable line of at most `most` characters.

    Runs of white space become one space. Control characters, bidirectional marks and lone surrogates are escaped, so
    that no file can move a terminal's cursor. Overlong words and then the whole text are cut in the middle, since a
    message begins with the place of the fault and ends with the remedy.
    """
    # A message may quote the input. Escaping all of a 3 MB quotation to show 400 characters would take seconds.
    if len(text) > 16 * most:
        text = text[: 8 * most] + _CUT + text[-8 * most :]
    text = "".join(c if c.isprintable() else _escaped(c) for c in re.sub(r"[ \t\r\n\v\f]+", " ", text)).strip()
    text = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda word: _cut(word[0], _LONGEST_WORD), text)
    return _cut(text, most)


def printable(text: str) -> str:
    """Returns `text`, of any number of lines, safe to print on a terminal.

    Bidirectional marks and control characters other than line ends and tabs are escaped.
    """
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda found: _escaped(found[0]), text)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    tail = (most - len(_CUT)) // 2
    return text[: most - len(_CUT) - tail] + _CUT + text[-tail:]


def _escaped(character: str) -> str:
    code = ord(character)
    # Python decodes bytes of a file name that are not UTF-8 as these surrogates.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]
