"""Limits of a server."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of what clients may ask for. Times are in seconds, sizes in bytes.

    Attributes:
      body_bytes: size of a request's body, except for adapters.
      adapter_bytes: size of an adapter that is uploaded.
      uploads: adapters that are uploaded at the same time.
      prompt_tokens: tokens of a prompt.
      output_tokens: new tokens of a choice.
      choices: choices of a request: prompts times `n`.
      stops: stop texts of a request.
      connections: open connections.
      requests: requests that are answered at the same time.
      queue: choices that wait for a row.
      queue_seconds: time that a request waits for its first token.
      header_seconds: time in which a client must send the headers of a request.
      body_seconds: time in which a client must send a body.
      write_seconds: time in which a client must read some of what was sent.
      grace_seconds: time that running requests have to end after SIGTERM.
    """

    body_bytes: int = 2**20
    adapter_bytes: int = 2**26
    uploads: int = 2
    prompt_tokens: int = 2**20
    output_tokens: int = 2**20
    choices: int = 16
    stops: int = 16
    connections: int = 2048
    requests: int = 1024
    queue: int = 256
    queue_seconds: float = 60.0
    header_seconds: float = 30.0
    body_seconds: float = 60.0
    write_seconds: float = 60.0
    grace_seconds: float = 30.0
