"""A request's parts and an answer's, as the HTTP server hands them over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """`target` is path and query as they came; headers in order, bytes as they came."""

    method: str
    target: str
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    request_id: str

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str:
        wanted = name.lower().encode()
        return next(
            (value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), ""
        )


@dataclass(frozen=True, slots=True)
class ApiAnswer:
    status: int
    headers: dict[str, str]
    body: bytes
