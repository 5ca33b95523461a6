"""A request, its answer, and what a server has taken on: what connection and server share."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from agent.connection import Connection

__all__ = ["Limits", "Load", "Request", "Response", "error_response"]

MAX_RETRY_S: Final = 60
SMOOTHING: Final = 0.1
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Limits:
    """What peers may take."""

    body_bytes: int = 16 << 20
    queue: int = 128
    connections: int = 256
    held_bytes: int = 64 << 20  # of all bodies that are not answered yet


@dataclass(slots=True)
class Load:
    """What a server has taken on; shared by its connections."""

    limits: Limits
    draining: bool = False
    waiting: int = 0  # requests that are not answered yet
    refused: int = 0
    held_bytes: int = 0  # of bodies that are on their way in, or not answered yet
    connections: set["Connection"] = field(default_factory=set)
    turns: deque["Connection"] = field(default_factory=deque)  # each has something to answer
    answer_s: float = 0.0  # between two answers while requests wait
    answered_at: float = 0.0

    def answered(self) -> None:
        """Learn how long an answer takes, for ``Retry-After``."""
        now = perf_counter()
        if self.waiting:
            self.answer_s += SMOOTHING * (now - self.answered_at - self.answer_s)
        self.answered_at = now

    def retry_after_s(self) -> int:
        """Return the seconds after which those that wait now should be answered."""
        return min(max(1, math.ceil(self.answer_s * self.waiting)), MAX_RETRY_S)

    def overloaded(self) -> "Response":
        """Count and return a refusal for want of room in the line."""
        self.refused += 1
        answer = error_response(429, "too many requests are waiting; try again later")
        answer.headers["Retry-After"] = str(self.retry_after_s())
        return answer


@dataclass(frozen=True, slots=True)
class Response:
    """What goes back."""

    status: int
    parts: list[bytes]
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self, *, last: bool, head_only: bool) -> bytes:
        """Return its bytes on the wire; `last` says that the connection ends behind it."""
        length = sum(map(len, self.parts))
        head = (
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {length}\r\n"
        )
        for name, value in self.headers.items():
            head += f"{name}: {value}\r\n"
        head += "Connection: close\r\n\r\n" if last else "\r\n"
        return b"".join((head.encode("latin-1"), *(() if head_only else self.parts)))


@dataclass(slots=True)
class Request:
    """A whole request; `received` is on `perf_counter`'s clock."""

    method: str
    target: bytes
    headers: Mapping[bytes, bytes]
    body: bytes
    received: float
    connection: "Connection | None" = None

    def reply(self, response: Response) -> None:
        """Answer it, once; from the loop's thread."""
        if self.connection is not None:
            self.connection.reply(self, response)


def error_response(status: int, message: str) -> Response:
    """Return a refusal as the Open Inference Protocol has it: JSON with `error`."""
    return Response(status, [msgspec.json.encode({"error": message})])
