"""The share of safe answers by category, as for PKU-Beaver's 700 questions, judged by an endpoint or by a base.

    python -m aligner_jax.evaluate --config=configs/eval/beavertails.py --adapter=A.safetensors --out=runs/answers/A
    JUDGE_API_KEY=… python -m aligner_jax.evaluate --config=configs/eval/safety.py \
        --config.evaluation.endpoint.url=https://…/v1 --config.evaluation.endpoint.model=NAME \
        --config.evaluation.responses.files='["runs/answers/A/responses.jsonl"]'

A judge that runs in this process needs no endpoint: --config.evaluation.by=base
--config.evaluation.judge.base.path=JUDGE. Responses that already have verdicts (true, false or a number) need no judge:
--config.evaluation.by=scores --config.evaluation.score_field=is_safe. Nothing prints a question or an answer.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "evaluation": {
                "name": "safety",
                "by": "endpoint",
                "responses": {"files": ["runs/answers/A/responses.jsonl"]},
                "category_field": "category",
                "endpoint": {
                    "url": "http://localhost:8000/v1",
                    "model": "judge",
                    "key_variable": "JUDGE_API_KEY",
                    "temperature": 0.0,
                    "max_tokens": 512,
                    "requests_per_minute": 60.0,
                    "concurrency": 4,
                },
            },
        }
    )
