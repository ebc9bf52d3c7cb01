"""Meanings of fields whose name says nearly all, so that their dataclass does not describe them."""

MEANINGS = {
    "config.adapter.method": "method of fine-tuning, see [Methods](methods.md).",
    "config.data.heldout_rows": "examples to hold out if `heldout_path` is None; see there.",
    "config.data.template": 'prompt format: "alpaca", or "chat" for the base\'s own chat template.',
    "config.objective.name": 'objective: "sft", the loss of a language model; "dpo" or "ipo", of preferences.',
    "config.optim.lr": "learning rate; with a schedule its highest value.",
    "config.optim.weight_decay": "decoupled weight decay, multiplied with the rate.",
    "config.optim.b1": "decay of the first moment.",
    "config.optim.b2": "decay of the second moment.",
    "config.optim.eps": "added to the denominator of Adam's update.",
    "config.optim.schedule": 'course of the rate; "paper_as_run" is what the authors\' code really ran.',
    "config.evaluation.template": 'prompt format; "auto" is the one that the adapter records.',
    "config.evaluation.system": "system prompt of the chat template; None keeps the recorded one.",
}
"""Markdown by full name of the field."""
