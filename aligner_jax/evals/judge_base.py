"""Asks a judge that runs in this process: a base, with or without an adapter, on the decoding engine."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals.generating import Prompt, encoded, generate
from aligner_jax.evals.interface import Run
from aligner_jax.evals.judge_prompts import Ask
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.subject import Subject, load_subject
from aligner_jax.runtime import sharding
from aligner_jax.runtime.config import BaseConfig
from aligner_jax.runtime.fields import number

_CHAT = PromptFormat("chat")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseJudgeConfig:
    """Config of a judge that runs in this process.

    It runs on the evaluation's mesh and with its batch size.

    Attributes:
      base: the judge's base.
      adapter: an adapter of it; None for the base alone.
      temperature: sampling temperature; 0 is greedy.
      max_tokens: tokens of an answer at most. An answer that is cut off before its verdict has no verdict.
    """

    base: BaseConfig | None = None
    adapter: str | None = None
    temperature: float = number(0.0, least=0)
    max_tokens: int = number(1024, least=1)


def ask_base(asks: Sequence[Ask], config: BaseJudgeConfig, run: Run) -> tuple[list[str], dict[str, str]]:
    """Returns the judge's answers in the order of `asks`, and its `Subject.made_from`.

    Prompts have the format that the judge's adapter records, else the chat template of its base. Answers are stored in
    the subfolder `judge` of the run's folder, in one file per judge, so an interrupted run continues from there. Equal
    requests are asked once.

    Raises:
      InputError: the base or the adapter cannot be read, the base has no chat template, a prompt does not fit its
        context, or answers cannot be written.
    """
    judge = _load(config, run)
    prompts = [_prompt(ask, judge, config) for ask in asks]
    identity = judge.made_from()
    made_from: dict[str, object] = {**identity}
    if config.temperature > 0:
        made_from["config.seed"] = run.config.seed
    # A judge has a file of its own, so that another one asks anew instead of being refused.
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    store = ResultStore(run.folder / "judge" / f"base-{name}.jsonl", made_from)
    return generate(judge, prompts, store, run.console, seed=run.config.seed, what="judged"), identity


def _load(config: BaseJudgeConfig, run: Run) -> Subject:
    if config.base is None:
        raise ValueError("the judge has no base")
    mesh, rules = sharding.mesh_of(run.config.mesh), sharding.rules_of(run.config.mesh)
    judge = load_subject(config.base, config.adapter, mesh=mesh, rules=rules, batch_size=run.config.batch_size)
    run.console.out(f"judge: {config.base.path}; adapter: {judge.adapter or 'none'}")
    if _format(judge).template == "chat" and judge.tokenizer.chat_template is None:
        raise InputError(
            f"the judge {config.base.path} has no chat template, so it cannot be asked; set "
            "config.evaluation.judge.base.path to a model that was trained on chats"
        )
    return judge


def _format(judge: Subject) -> PromptFormat:
    return judge.prompt_format or _CHAT


def _prompt(ask: Ask, judge: Subject, config: BaseJudgeConfig) -> Prompt:
    try:
        ids = encoded(judge, render(ask, _format(judge), judge.tokenizer))
    except InputError as error:
        raise InputError(f"{ask.where}: the judge cannot be asked: {error}") from error
    context = judge.base.config.context_length
    if len(ids) + config.max_tokens > context:
        raise InputError(
            f"{ask.where}: the judge's prompt has {len(ids)} tokens, which with {config.max_tokens} new ones "
            f"(config.evaluation.judge.max_tokens) do not fit the judge's context of {context}"
        )
    return Prompt(ids, config.max_tokens, Sampling(config.temperature))


def render(ask: Ask, prompt_format: PromptFormat, tokenizer: Tokenizer) -> str:
    """Returns the text whose continuation is the judge's answer. Encode it with `bos=tokenizer.add_bos`.

    The system message begins the user's message if the template refuses system messages or leaves them out.

    Raises:
      InputError: there is no chat template, or it refuses the request.
    """
    system = ask.system or prompt_format.system or ""
    merged = f"{system}\n\n{ask.user}" if system else ask.user
    if prompt_format.template != "chat":
        return prompt_format.render(merged, tokenizer)
    if system:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": ask.user}]
        try:
            text = tokenizer.render_chat(messages, add_generation_prompt=True)
        except InputError:
            text = ""
        if system.strip() in text:
            return text
    return tokenizer.render_chat([{"role": "user", "content": merged}], add_generation_prompt=True)
