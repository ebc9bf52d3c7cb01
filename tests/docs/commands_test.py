"""Every shell line of README and docs is a command that exists, with flags, config fields and files that exist."""

import ast

import doc_pages
import places
import pytest
from doc_checks import each_problem
from doc_pages import PAGES, shell_lines


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_exists(page: str):
    assert each_problem(shell_lines(page, doc_pages.read(page))) == []


def test_the_pages_have_commands():
    lines = [line for page in PAGES for line in shell_lines(page, doc_pages.read(page))]
    assert sum(line.words[:2] == ["python", "-m"] for line in lines) > 40


DOCUMENTED = sorted(
    str(path.relative_to(places.ROOT))
    for pattern in ("aligner_jax/*.py", "configs/**/*.py", "scripts/*/*.py")
    for path in places.ROOT.glob(pattern)
)


def test_every_command_of_a_docstring_exists():
    found = []
    for file in DOCUMENTED:
        text = ast.get_docstring(ast.parse(doc_pages.read(file))) or ""
        found += each_problem(shell_lines(file, f"```\n{text}\n```\n"))
    assert found == []


WRONG = {
    "python -m aligner_jax.generat --base=PATH": "there is no command generat",
    "python -m aligner_jax.generate --bas=PATH": "generate has no flag --bas",
    "python -m aligner_jax.generate --base=PATH [--topp=0.9]": "generate has no flag --topp",
    "python -m aligner_jax.generate --max_new_tokens=many": "--max_new_tokens=many",
    "python -m aligner_jax.export --to=hf|ggml": "--to=ggml",
    "python -m aligner_jax.train --config=configs/no.py": "configs/no.py",
    "python -m aligner_jax.train --config=configs/quickstart.py --config.optim.rate=1": "config.optim.rate",
    "python -m aligner_jax.train --config=configs/quickstart.py --config.steps=0": "config.steps is 0",
    "python -m aligner_jax.train --config=FILE --config.optim.rate=1": "config.optim.rate is no field",
    "python -m aligner_jax.train --config=configs/quickstart.py --config.data.path=None": "is not set",
    "python -m aligner_jax.evaluate --config=configs/eval/quick.py --config.evaluation.n=1": "config.evaluation.n",
    "python -m scripts.no": "there is no scripts.no",
    "python -m scripts.site --output=DIR": "scripts.site has no flag --output",
    "bash scripts/no.sh": "there is no scripts/no.sh",
    "pip install '.[tpus]'": "there is no extra 'tpus'",
    "pip install -r requirement.txt": "there is no file requirement.txt",
    "bash scripts/run_tpu_pod.sh --nam=x -- python -m aligner_jax.train": "has no flag --nam",
    "bash scripts/run_tpu_pod.sh --name=x -- python -m aligner_jax.trai": "there is no command trai",
    "aligner-jax generate --bas=PATH": "generate has no flag --bas",
    "cat x | frobnicate": "'frobnicate'",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_line_is_seen(line: str):
    (found,) = each_problem(shell_lines("page.md", f"# Title\n\n```bash\n# comment\n{line}\n```\n"))
    assert found.startswith("page.md:5: ")
    assert WRONG[line] in found


@pytest.mark.parametrize(
    "text",
    [
        "See `python -m aligner_jax.generate --bas=PATH`.",
        "See `python -m aligner_jax.generate\n--bas=PATH`.",
        "See [`python -m aligner_jax.generate --bas=PATH`](x.md).",
        "```\npython -m aligner_jax.generate --base=PATH\n    [--bas=PATH]\n```",
        "Text\n\n    python -m aligner_jax.generate --base=PATH \\\n        --bas=PATH\n\nmore",
        "```bash\nX=1 python -m aligner_jax.generate \\\n  --bas=PATH  # a remark\n```",
    ],
)
def test_a_wrong_flag_is_seen_in_text_and_in_every_kind_of_block(text: str):
    (found,) = each_problem(shell_lines("page.md", text))
    assert found.endswith("generate has no flag --bas")


@pytest.mark.parametrize(
    "line",
    [
        "python -m aligner_jax.train --config=configs/llama7b_alpaca.py …",
        "python -m aligner_jax.evaluate --config=configs/eval/quick.py [--config.FIELD=VALUE …]",
        "python -m aligner_jax.train --config=configs/quickstart.py --config.steps=STEPS",
        "python -m aligner_jax.train --config=FILE --config.adapter.method=lora --config.adapter.rank=4",
        "ENV/bin/python -m pip install '.[eval,serve]'",
        "git clone ADDRESS && cd aligner_jax",
    ],
)
def test_a_right_line_passes(line: str):
    assert each_problem(shell_lines("page.md", f"```bash\n{line}\n```\n")) == []
