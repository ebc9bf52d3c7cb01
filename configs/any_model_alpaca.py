"""Aligner on a model and a file of your own, by a named recipe.

    python -m aligner_jax.train --config=configs/any_model_alpaca.py --config.base.path=DIR_OR_HUB_NAME \
        --config.data.path=FILE
    python -m aligner_jax.train --config=configs/any_model_alpaca.py:sums,7 …       # another recipe, with 7 tokens

The model is a folder as the Hugging Face hub has them, a .gguf file, a folder in Meta's form, or ORG/NAME on the hub,
of the architectures LLaMA (1 to 3.2, TinyLlama, SmolLM2), Mistral and Qwen2; its files tell its sizes. To plan a run
without weights, name a published architecture: --config.base.model=llama3_1_8b, or another of llama_7b, llama_13b,
llama2_7b, llama2_13b, llama2_70b, llama3_8b, llama3_70b, llama3_1_70b, llama3_2_1b, llama3_2_3b, tinyllama_1b,
mistral_7b, smollm2_135m, smollm2_360m and smollm2_1_7b.

FILE has any format that is read, such as alpaca_data.json of https://github.com/tatsu-lab/stanford_alpaca, or is the
name of a data set on the hub, such as yahma/alpaca-cleaned; docs/data.md lists formats and data sets, and `python -m
aligner_jax.data FILE` shows how yours is understood. Prompts are put into the model's own chat template; for a model
without one, use --config.data.template=alpaca. The last 200 examples are held out; with few, use
--config.data.heldout_rows=20, and without any --config.data.heldout_rows=0.

Fields that may be unset take None: --config.data.heldout_path=None. The recipe is "paper" unless the part after the
colon names another; docs/recipes.md has their settings.
"""

from ml_collections import ConfigDict, config_dict

from aligner_jax.runtime.recipes import with_recipe


def get_config(recipe: str = "paper") -> ConfigDict:
    config = ConfigDict(
        {
            "base": {"path": config_dict.required_placeholder(str)},
            "data": {
                "path": config_dict.required_placeholder(str),
                "heldout_rows": 200,
                "template": "chat",
                "sequence_length": 512,
                "batch_size": 16,
                "overlong": "truncate",
            },
            "optim": {"schedule": "cosine"},
            "mesh": {"fsdp": -1},
            "steps": 500,
            "remat": "auto",
            "log_every": 10,
            "eval_every": 100,
            "checkpoint": {"every": 100},
        }
    )
    return with_recipe(config, recipe)
