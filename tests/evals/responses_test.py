"""Files of responses: a judge reads them as they were written."""

from pathlib import Path

from aligner_jax.evals.response_files import ResponsesConfig, read_responses
from aligner_jax.evals.responses import GeneratedResponse, write_responses

TEXTS = ["plain", 'quoted, "twice"', "two\nlines", "two\r\nlines", "a\rreturn", "", " blanks ", "é\u2028é"]


def test_every_text_is_read_back_from_both_files(tmp_path: Path):
    written = [GeneratedResponse("m", str(i), "c", f"{text}?", text) for i, text in enumerate(TEXTS)]
    write_responses(tmp_path, written)
    for name, model_field in (("responses.jsonl", "model"), ("responses.csv", "file_name")):
        models = read_responses(ResponsesConfig(files=(str(tmp_path / name),), model_field=model_field))
        assert [(each.prompt, each.text) for each in models["m"].values()] == [(f"{t}?", t) for t in TEXTS]
    rows = [each.record for each in models["m"].values()]
    assert [row["qa_pair_id"] for row in rows] == [str(i) for i in range(len(TEXTS))]
