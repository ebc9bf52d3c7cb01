"""Two models' answers to Vicuna-bench, judged in both orders by any OpenAI-compatible endpoint, or by a base.

    python -m aligner_jax.evaluate --config=configs/eval/vicuna.py --adapter=A.safetensors --out=runs/vicuna/A
    python -m aligner_jax.evaluate --config=configs/eval/vicuna.py --adapter=B.safetensors --out=runs/vicuna/B
    JUDGE_API_KEY=… python -m aligner_jax.evaluate --config=configs/eval/vicuna_judge.py \
        --config.evaluation.endpoint.url=https://…/v1 --config.evaluation.endpoint.model=NAME \
        --config.evaluation.responses.files='["runs/vicuna/A/responses.jsonl", "runs/vicuna/B/responses.jsonl"]'

With several files the first model is compared with every other one; `pairs` names other pairs. For an endpoint without
a key, such as your own server, use --config.evaluation.endpoint.key_variable=None. A judge that runs in this process
needs no endpoint: --config.evaluation.by=base --config.evaluation.judge.base.path=JUDGE. docs/judging.md describes
both, prices, limits and prompts.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "evaluation": {
                "name": "pairwise",
                "by": "endpoint",
                "responses": {"files": ["runs/vicuna/A/responses.jsonl", "runs/vicuna/B/responses.jsonl"]},
                "endpoint": {
                    "url": "http://localhost:8000/v1",
                    "model": "judge",
                    "key_variable": "JUDGE_API_KEY",
                    "temperature": 0.0,
                    "max_tokens": 1024,
                    "requests_per_minute": 60.0,
                    "concurrency": 4,
                },
                "unparsable": "apart",
            },
        }
    )
