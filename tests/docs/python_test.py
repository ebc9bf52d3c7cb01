"""Every Python block of README and docs runs, on a random model of four layers; blocks of a page share their names."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import doc_pages
import pytest
from doc_pages import PAGES
from doc_stand_ins import furnish, make_named_files, python_blocks, shortened
from judge_server import echo, judge_server

from aligner_jax.weights.base import Base

WITH_PYTHON = [page for page in PAGES if python_blocks(doc_pages.read(page))]


class Place(NamedTuple):
    """A folder with what pages name, its model, and the URL of a server that echoes what it is asked."""

    folder: Path
    base: Base
    server: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("pages")
    with judge_server(echo) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.chdir(folder)
        yield Place(folder, furnish(folder), server.url)


def run(page: str, text: str, place: Place) -> None:
    """Executes the Python blocks of a page in order.

    Raises:
      AssertionError: a block failed; names page, line and the error.
    """
    names: dict[str, object] = {"__name__": "page"}
    for block in python_blocks(text):
        code = shortened(block.text, place.server)
        make_named_files(code, place.folder, place.base)
        try:
            # Empty lines before it let the error have the page's number of the line.
            exec(compile("\n" * (block.line - 1) + code, page, "exec"), names)
        except Exception as error:
            lines, frame = [block.line], error.__traceback__
            while frame:
                lines += [frame.tb_lineno] if frame.tb_frame.f_code.co_filename == page else []
                frame = frame.tb_next
            line = error.lineno if isinstance(error, SyntaxError) else lines[-1]
            raise AssertionError(f"{page}:{line}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs(page: str, place: Place):
    run(page, doc_pages.read(page), place)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1\ny = z", "page.md:5: NameError: name 'z' is not defined"),
        ("import aligner_jax as aj\naj.no_function()", "page.md:5: AttributeError"),
        ("x =", "page.md:4: SyntaxError"),
    ],
)
def test_code_that_fails_is_named_by_page_and_line(code: str, said: str, place: Place):
    with pytest.raises(AssertionError) as caught:
        run("page.md", f"# Title\n\n```python\n{code}\n```\n", place)
    assert str(caught.value).startswith(said)


def test_blocks_of_a_page_share_their_names(place: Place):
    run("page.md", "```python\nx = 1\n```\n\n```python\nassert x == 1\n```\n", place)
