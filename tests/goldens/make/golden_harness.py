"""Writes goldens of lm-evaluation-harness's own `hf` backend: chats, ids, log-likelihoods, answers, tasks.

    ENV/bin/pip install torch==2.13.0 transformers==5.24.0 accelerate lm-eval==0.4.13 sentencepiece
    ENV/bin/python tests/goldens/make/golden_harness.py                      # writes tests/goldens/harness/

The cases are those of golden_harness_models.py. Where `hf` fails, the golden is null. Nothing here imports aligner_jax.
"""

import argparse
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error", DISABLE_MULTIPROC="1")

import lm_eval
import sentencepiece
from golden_harness_models import (
    BPE_SIZE,
    CHATS,
    CONTEXTS,
    FOLDERS,
    GOLDENS,
    KINDS_OF_END,
    PAIRS,
    ROLLING,
    SENTENCEPIECE_SIZE,
    TASKS,
    TEMPLATES,
    TEXTS,
    WHOLE,
    write_folder,
    write_task,
)
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = Path(__file__).resolve().parents[3] / "aligner_jax" / "data" / "quickstart" / "train.jsonl"


def write_vocabularies(corpus: list[str]) -> None:
    """Trains the small vocabularies on the quickstart's data."""
    GOLDENS.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_SIZE, special_tokens=["<|im_start|>", "<|im_end|>", "<|other|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus, trainer)
    (GOLDENS / "bpe.json").write_text(tokenizer.to_str() + "\n")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)]
    )
    (GOLDENS / "bpe_adds_bos.json").write_text(tokenizer.to_str() + "\n")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, model_type="bpe", vocab_size=SENTENCEPIECE_SIZE,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2,
    )  # fmt: skip
    (GOLDENS / "tokenizer.model").write_bytes(model.getvalue())


def request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments, task_name=None)


def or_none(make: Callable[[], Any]) -> Any:
    """Returns the value, or null if `hf` fails."""
    try:
        return make()
    except Exception:
        return None


def of_folder(model: HFLM) -> dict[str, Any]:
    """Returns ids, log-likelihoods and answers, one request at a time, so that none depends on others of its batch."""
    return {
        "ids": [[or_none(lambda t=t, s=s: model.tok_encode(t, s)) for s in (None, False)] for t in TEXTS],
        "pairs": [or_none(lambda pair=pair: model.loglikelihood([request(*pair)])[0]) for pair in PAIRS],
        "rolling": [or_none(lambda text=text: model.loglikelihood_rolling([request(text)])[0]) for text in ROLLING],
        "prompts": [model.tok_batch_encode([context])[0][0].tolist() for context in CONTEXTS],
        "answers": [
            [or_none(lambda c=c, k=k: model.generate_until([request(c, k)])[0]) for k in KINDS_OF_END]
            for c in CONTEXTS
        ],
    }  # fmt: skip


def of_chats(model: HFLM) -> list[list[str | None]]:
    """Returns the ids of each chat, with and without the generation prompt."""
    return [
        [or_none(lambda c=chat, a=add: model.apply_chat_template(c, add_generation_prompt=a)) for add in (True, False)]
        for chat in CHATS
    ]


def of_tasks(model: HFLM, folder: Path) -> dict[str, Any]:
    """Returns the prompt and the answer of each document."""
    found = {}
    for name, (_, arguments) in TASKS.items():
        write_task(folder, name)

        def run(name: str = name, arguments: dict = arguments) -> Any:
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            return lm_eval.simple_evaluate(
                model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, **arguments
            )["samples"][name]  # fmt: skip

        samples = or_none(run)
        found[name] = samples and [[each["arguments"][0][0], each["resps"][0][0]] for each in samples]
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.disable(logging.WARNING)
    write_vocabularies(CORPUS.read_text(encoding="utf-8").splitlines())
    golden: dict[str, Any] = {"lm_eval": lm_eval.__version__, "folders": {}, "chats": {}, "tasks": {}}
    with tempfile.TemporaryDirectory() as temporary:

        def model(name: str, template: str = "chatml") -> HFLM:
            folder = write_folder(Path(temporary) / f"{name}_{template}", name, template)
            return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)

        for name in FOLDERS:
            golden["folders"][name] = of_folder(model(name))
        for template in TEMPLATES:
            golden["chats"][template] = of_chats(model("sentencepiece", template))
        for name, template in WHOLE:
            golden["tasks"][f"{name} {template}"] = of_tasks(model(name, template), Path(temporary) / "tasks")
    (GOLDENS / "hf.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
