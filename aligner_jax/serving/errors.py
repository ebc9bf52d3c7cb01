"""Errors in OpenAI's format."""

from collections.abc import Callable, Mapping
from typing import Any, Self

from starlette.responses import JSONResponse

from aligner_jax.errors import InputError, one_line

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error that a client is told.

    Attributes:
      status: HTTP status.
      message: one sentence.
      param: field of the request that is wrong; None for no single one.
      code: code of the error in OpenAI's API; None if there is none.
      headers: headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, one_line(message), param, code
        self.headers = dict(headers or {})

    @classmethod
    def overloaded(cls, message: str, *, retry_after: int = 1) -> Self:
        """Returns the error of a server that has too much to do; `retry_after` is in seconds."""
        headers = {"retry-after": str(retry_after)}
        return cls(429, message, code="rate_limit_exceeded", headers=headers)

    @property
    def body(self) -> dict[str, Any]:
        """Body of the response."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Returns the response."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def read[T](reader: Callable[..., T], name: str, *args: Any, **options: Any) -> T:
    """Returns `reader(name, *args, **options)`, a field of a request.

    Raises:
      ApiError: the reader refuses the field.
    """
    try:
        return reader(name, *args, **options)
    except InputError as error:
        raise ApiError(400, str(error), param=name) from error
