"""Shows how a file, a folder or a hub data set is understood as training data.

python -m aligner_jax.data FILE
python -m aligner_jax.data FILE --base=PATH --template=chat --sequence_length=512     # in tokens, with the loss mask
python -m aligner_jax.data FILE --format=fields --fields.question=Frage --fields.answer=Antwort

Prints the format, the number of examples, of records that are left out, with the reasons, and of unused fields; the
lengths; and the first examples with the parts that are learned marked: bold, underlined and green on a terminal.
"""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from aligner_jax.data.sources import SOURCES, load_dataset
from aligner_jax.data.templates import TEMPLATES
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.data.tokenizer_files import load_tokenizer
from aligner_jax.data.view import Encoding, Style, describe
from aligner_jax.errors import InputError
from aligner_jax.files.content import is_folder

_FIELD = "--fields."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
      arguments: arguments of the command line; None takes those of the process.
    """
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    fields = {}
    for text in others:
        name, equals, value = text.removeprefix(_FIELD).partition("=")
        if not (text.startswith(_FIELD) and name and equals):
            parser.error(f"{text!r} is not an option; {_FIELD}NAME=FIELD names a field of the file")
        fields[name] = value
    # The package prints its lines itself; others make the root logger print them once more.
    logging.getLogger("huggingface_hub").propagate = False
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for line in _described(options, fields):
            print(line)
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The interpreter flushes the stream once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are those of the other commands: one sentence and status 1."""

    def error(self, message: str) -> NoReturn:
        sys.exit(f"error: {message}; --help explains the options")


def _parser() -> argparse.ArgumentParser:
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = _Parser(
        "python -m aligner_jax.data", description=about, epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("path", help="file, folder or ORG/NAME of a data set on the Hugging Face hub; also with :SPLIT")
    parser.add_argument("--base", help="folder or file of a model, whose tokenizer makes the tokens")
    parser.add_argument(
        "--template", choices=["auto", *TEMPLATES, "none"], default="auto",
        help="template of the prompts; auto is the model's chat template, or alpaca if it has none",
    )  # fmt: skip
    parser.add_argument("--system", help="system prompt of the chat template")
    parser.add_argument(
        "--format", default="auto", metavar="FORMAT", help=f"auto (default), {', '.join(SOURCES)} or fields"
    )
    parser.add_argument("--fields.NAME", dest="_", metavar="FIELD", help="field of the file, for --format=fields")
    parser.add_argument("--sequence_length", type=int, default=512, help="tokens of a row (default %(default)s)")
    parser.add_argument("--examples", type=int, default=3, help="number of examples to show (default %(default)s)")
    parser.add_argument(
        "--color", choices=["auto", "always", "never"], default="auto", help="auto: on a terminal, without NO_COLOR"
    )
    return parser


def _described(options: argparse.Namespace, fields: dict[str, str]) -> list[str]:
    tokenizer = _tokenizer(options.base) if options.base is not None else None
    dataset = load_dataset(options.path, options.format, fields)
    encoding = None
    if tokenizer is not None:
        template = options.template
        if template == "auto":
            template = "chat" if tokenizer.chat_template is not None else "alpaca"
        encoding = Encoding(tokenizer, template, options.system, max(options.sequence_length, 2))
    elif options.template != "auto" or options.system is not None:
        raise InputError("--template and --system need the tokenizer of a model: add --base=PATH")
    is_terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    color = options.color == "always" or (options.color == "auto" and is_terminal)
    style = Style(color, shutil.get_terminal_size((100, 24)).columns)
    return describe(options.path, dataset, encoding, style, examples=max(options.examples, 0))


def _tokenizer(base: str) -> Tokenizer:
    """Returns the tokenizer of a model's folder or file; converted bases have it in a subfolder, Meta's beside."""
    path = Path(os.path.expanduser(base))
    inside = path / "tokenizer"
    tokenizer = load_tokenizer(inside if is_folder(inside) else path)
    if tokenizer is None and is_folder(path):
        tokenizer = load_tokenizer(path.parent)
    if tokenizer is None:
        raise InputError(f"{base} has no tokenizer (tokenizer.json or tokenizer.model)")
    return tokenizer


if __name__ == "__main__":
    sys.exit(main())
