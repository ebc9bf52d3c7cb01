"""Aligner on a model and a file of your own, by a named recipe.

    python -m aligner_jax.train --config=configs/any_model_alpaca.py --config.base.path=DIR_OR_HUB_NAME \
        --config.data.path=FILE
    python -m aligner_jax.train --config=configs/any_model_alpaca.py:sums,7 …       # another recipe, with 7 tokens

The file has Alpaca's format or another that is read (docs/data.md). Prompts are put into the model's own chat
template; for a model without one, use --config.data.template=alpaca. The last 200 examples are held out. The recipe is
"paper" unless the part after the colon names another; docs/recipes.md has their settings.
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
