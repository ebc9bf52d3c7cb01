"""Makes a server from a base and its adapters."""

import time
from pathlib import Path

from aligner_jax.decoding.engine import Engine
from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.decoding.server_options import row_capacity
from aligner_jax.errors import InputError
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.artifact import RecordedBase
from aligner_jax.peft.bank_folder import open_bank
from aligner_jax.peft.row_adapters import Capacity, capacity_of
from aligner_jax.serving.adapters import Adapters
from aligner_jax.serving.engine_thread import EngineThread
from aligner_jax.serving.limits import Limits
from aligner_jax.serving.metrics import Metrics
from aligner_jax.serving.models import Models
from aligner_jax.serving.service import Service
from aligner_jax.weights.base import Base


def open_adapters(place: str | Path, base: RecordedBase) -> Adapters:
    """Opens the adapters of a server.

    Args:
      place: a bank, or a folder of NAME.safetensors.
      base: the base.

    Raises:
      InputError: there are no adapters at `place`, or they are of another base.
    """
    return Adapters(open_bank(place, base))


def room_for(adapters: Adapters, base: Base, prefix_tokens: int, rank: int) -> Capacity:
    """Returns a capacity for any two of the adapters in a row, and at least what is asked for (`row_capacity`).

    Raises:
      InputError: rows cannot have different adapters of the method of one of them, which is named.
    """
    return row_capacity([_need(kind, adapters, base) for kind in adapters.kinds()], prefix_tokens, rank)


def _need(kind: tuple[str, Options], adapters: Adapters, base: Base) -> Capacity:
    try:
        return capacity_of(*kind, base.params, base.config)
    except InputError as error:
        stored = ((name, adapters.get(name)) for name in adapters.names())
        first = next(name for name, each in stored if (each.method, each.options) == kind)
        raise InputError(f"{adapters.source(first)} cannot be served: {error}") from error


def make_service(
    base: Base,
    adapters: Adapters,
    options: EngineOptions,
    *,
    name: str,
    limits: Limits,
    keys: tuple[bytes, ...] = (),
    named: RecordedBase | None = None,
) -> Service:
    """Returns the parts of a server; its engine has not started.

    Args:
      base: the base.
      adapters: its adapters.
      options: sizes of the engine.
      name: name of the base as a model.
      limits: limits of requests.
      keys: keys of which a client must have one.
      named: the base's fingerprint, if it is known already.

    Raises:
      InputError: the base has no tokenizer, or an adapter has its name.
    """
    if base.tokenizer is None:
        raise InputError("the base has no tokenizer (no tokenizer.json or tokenizer.model beside its weights)")
    if name in adapters:
        raise InputError(f"{adapters.source(name)} has the name of the base; give the base another one with --name")
    engine = Engine(base.params, base.config, options, stop_ids=base.tokenizer.stop_ids)
    thread = EngineThread(engine, limits.queue)
    return Service(
        base=named or RecordedBase(base.config, base.fingerprint), tokenizer=base.tokenizer,
        models=Models(name, adapters), engine=thread, limits=limits, metrics=Metrics(thread), keys=keys,
        started=int(time.time()),
    )  # fmt: skip
