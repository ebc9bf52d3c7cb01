"""Parts of a server that its endpoints share."""

import asyncio
import dataclasses

from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.peft.artifact import RecordedBase
from aligner_jax.serving.engine_thread import EngineThread
from aligner_jax.serving.limits import Limits
from aligner_jax.serving.metrics import Metrics
from aligner_jax.serving.models import Models


@dataclasses.dataclass
class Service:
    """A server's parts.

    Attributes:
      base: config and fingerprint of the base.
      tokenizer: tokenizer of the base.
      models: names of the models.
      engine: thread of the engine.
      limits: limits of requests.
      metrics: counts for Prometheus.
      keys: keys of which a client must have one; empty if it needs none.
      started: time of the start in seconds since 1970.
      is_draining: True once the server takes no new connections.
      uploading: held by adapters that are uploaded.
    """

    base: RecordedBase
    tokenizer: Tokenizer
    models: Models
    engine: EngineThread
    limits: Limits
    metrics: Metrics
    keys: tuple[bytes, ...]
    started: int
    is_draining: bool = False
    uploading: asyncio.Semaphore = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.uploading = asyncio.Semaphore(self.limits.uploads)
