"""A client for predictions: asks a device over HTTP, tensors as raw bytes.

    with Client("http://127.0.0.1:8080") as client:
        answer = client.predict("reader", {"image": image})
        print(answer.outputs["scores"].argmax(), answer.bundle)

One connection, kept open. A request has an id; a device counts an id once. So when a
connection breaks, ask again with the same id: the answer comes, and nothing is
counted twice.
"""

import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from skerry.errors import (
    FormatError,
    NotFoundError,
    RefusedError,
    SkerryError,
    UnreachableError,
    UsageError,
)
from skerry.manifest import ReadingKind
from skerry.tensors import DTYPES, datatype_of, from_raw, to_raw

__all__ = ["Answer", "Client", "Label", "ModelInfo", "Parameters", "Port", "Reading"]

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 1 << 30
READ_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device answered, and which release it was that answered."""

    id: str
    outputs: dict[str, NDArray[Any]]
    model_version: str
    bundle: str
    variant: str
    power_safe: bool = False  # its record outlasts a power cut


OneLabel = str | int | float | bool | np.generic
Label = OneLabel | NDArray[Any] | Sequence[OneLabel | None]
Became = Literal["joined", "duplicate", "conflict", "unknown"]


class _Became(msgspec.Struct):
    id: str
    status: Became


class _Feedback(msgspec.Struct):
    results: list[_Became]


class Port(msgspec.Struct, frozen=True):
    """An input or output of a model; `datatype` as in the Open Inference Protocol, -1 is open."""

    name: str
    datatype: str
    shape: list[int]
    range: tuple[float, float] | None = None


class Reading(msgspec.Struct, frozen=True):
    """How a prediction is read from an output, see `skerry.reading`."""

    output: str
    kind: ReadingKind
    threshold: float = 0.5
    class_names: list[str] = []


class Parameters(msgspec.Struct, frozen=True):
    """What a device says of a model beside the protocol."""

    bundle: str
    variant: str
    prediction: Reading
    ranges: dict[str, tuple[float, float]] = {}  # of inputs, as in training


class ModelInfo(msgspec.Struct, frozen=True):
    """A model in service, as the device describes it."""

    name: str
    versions: list[str]
    inputs: list[Port]
    outputs: list[Port]
    parameters: Parameters


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = {}


class _Reply(msgspec.Struct):
    model_version: str
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] = []


_REPLY: Final = msgspec.json.Decoder(_Reply)


class Client:
    """Asks one device; not to be shared between threads.

    Args:
        url: ``http://host:port``, or ``unix:/path/of/a/socket``.
        timeout_s: for one answer.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "unix"):
            raise UsageError(f"expected http://host:port or unix:/path, got {url[:200]!r}")
        self._url = url
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._path = parts.path if parts.scheme == "unix" else ""
        self._host = "localhost" if self._path else parts.netloc
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def predict(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        *,
        id: str = "",
        version: str = "",
        power_safe: bool = False,
    ) -> Answer:
        """Return the model's outputs for a batch of inputs.

        Args:
            model: its name.
            inputs: arrays by name, as the model takes them; the first axis is the batch.
            id: names the request; one is made where it is empty.
            version: a particular version, or whichever is in service.
            power_safe: wait until the record of the answer outlasts a power cut.

        Raises:
            UnreachableError: the connection broke, or the device is too busy; ask again
                with the same id.
            NotFoundError: no such model.
            UsageError: the inputs are not what the model takes.
            SkerryError: the model failed.
        """
        id = id or secrets.token_hex(8)
        tensors, raw = [], []
        for name, array in inputs.items():
            data = to_raw(np.asarray(array))
            raw.append(data)
            tensors.append(
                {
                    "name": name,
                    "shape": array.shape,
                    "datatype": datatype_of(array),
                    "parameters": {"binary_data_size": len(data)},
                }
            )
        parameters = {"binary_data_output": True}
        if power_safe:
            parameters["power_safe"] = True
        head = msgspec.json.encode({"id": id, "parameters": parameters, "inputs": tensors})
        path = f"/v2/models/{quote(model, safe='')}"
        if version:
            path += f"/versions/{quote(version, safe='')}"
        headers = f"Inference-Header-Content-Length: {len(head)}\r\n"
        status, got, body = self._ask("POST", path + "/infer", headers, b"".join((head, *raw)))
        if status != 200:
            raise _refusal(status, body, self._url)
        return _answer(got, body)

    def feedback(self, model: str, id: str, label: Label) -> Became | list[Became]:
        """Tell what a prediction should have been; may be said again.

        Args:
            model: its name.
            id: of the request, as its `Answer` has it.
            label: a number where the prediction is a value, else the name or the number of a
                class; of a batch a list with one for each row, None for those without.

        Returns:
            ``joined``, ``duplicate`` (it has this label already), ``conflict`` (it has another
            one, which holds) or ``unknown`` (no such prediction is held, or no longer); of a
            list one for each label in it.

        Raises:
            UsageError: no label for this model, or the device awaits none.
            NotFoundError: no such model.
            UnreachableError: the connection broke, or the device has no room; say it again.
        """
        many = isinstance(label, (Sequence, np.ndarray)) and not isinstance(label, str)
        said = msgspec.json.encode({"id": id, "label": label}, enc_hook=_plain)
        path = f"/v2/models/{quote(model, safe='')}/feedback"
        status, _, body = self._ask("POST", path, "", said)
        if status not in (200, 409):
            raise _refusal(status, body, self._url)
        try:
            became = [row.status for row in msgspec.json.decode(body, type=_Feedback).results]
        except msgspec.DecodeError as error:
            raise FormatError(f"expected what became of labels: {error}") from None
        return became if many else became[0]

    def describe(self, model: str) -> ModelInfo:
        """Return a model's inputs and outputs, and which release it is.

        Raises:
            NotFoundError: no such model.
            UnreachableError: the device cannot be asked.
        """
        status, _, body = self._ask("GET", f"/v2/models/{quote(model, safe='')}", "", b"")
        if status != 200:
            raise _refusal(status, body, self._url)
        try:
            info = msgspec.json.decode(body, type=ModelInfo)
        except msgspec.DecodeError as error:
            raise FormatError(f"expected a description of a model: {error}") from None
        ranges = info.parameters.ranges
        inputs = [msgspec.structs.replace(p, range=ranges.get(p.name)) for p in info.inputs]
        return msgspec.structs.replace(info, inputs=inputs)

    def ready(self, model: str = "") -> bool:
        """Tell whether the device, or one model on it, is ready to answer.

        Raises:
            UnreachableError: it cannot be asked.
        """
        path = f"/v2/models/{quote(model, safe='')}/ready" if model else "/v2/health/ready"
        return self._ask("GET", path, "", b"")[0] == 200

    def _ask(
        self, method: str, path: str, headers: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{headers}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        message = head.encode() + body
        # A device may close a connection that is idle, just when a request is sent. It is sent
        # once more on a new one: without a byte of an answer, or with the same id, that is safe.
        again = self._socket is not None
        while True:
            try:
                return self._exchange(message)
            except (OSError, EOFError) as error:
                self.close()
                if isinstance(error, TimeoutError) or not again:
                    raise UnreachableError(
                        f"no answer from {self._url}: {error!r}; ask again with the same id"
                    ) from None
                again = False
            except BaseException:
                self.close()
                raise

    def _exchange(self, message: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = self._socket or self._connect()
        self._socket = connection
        connection.sendall(message)
        buffer = b""
        while (end := buffer.find(b"\r\n\r\n")) < 0:
            if len(buffer) > MAX_HEAD_BYTES:
                raise FormatError(f"expected at most {MAX_HEAD_BYTES} bytes of headers")
            buffer += _receive(connection)
        status_line, *lines = buffer[:end].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        try:
            status, length = int(status_line.split(" ", 2)[1]), int(headers["content-length"])
        except (KeyError, ValueError, IndexError):
            raise FormatError(f"expected an HTTP answer, got {status_line[:80]!r}") from None
        if not 0 <= length <= MAX_BODY_BYTES:
            raise FormatError(f"expected a body of at most {MAX_BODY_BYTES} bytes")
        chunks = [buffer[end + 4 :]]
        left = length - len(chunks[0])
        while left > 0:
            chunks.append(_receive(connection))
            left -= len(chunks[-1])
        if headers.get("connection", "").lower() == "close":
            self.close()
        return status, headers, b"".join(chunks)

    def _connect(self) -> socket.socket:
        if self._path:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(self._timeout_s)
            connection.connect(self._path)
            return connection
        connection = socket.create_connection(self._address, self._timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def _plain(value: Any) -> Any:
    """Return what numpy has as JSON has it."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise UsageError(f"expected a label of a number, a text or a list, got {type(value).__name__}")


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(READ_BYTES)
    if not data:
        raise EOFError("connection closed")
    return data


def _answer(headers: Mapping[str, str], body: bytes) -> Answer:
    view = memoryview(body)
    try:
        at = int(headers.get("inference-header-content-length", len(body)))
        reply = _REPLY.decode(view[:at])
    except (msgspec.DecodeError, ValueError) as error:
        raise FormatError(f"expected an inference response: {error}") from None
    outputs = {}
    for output in reply.outputs:
        size = output.parameters.get("binary_data_size", -1)
        if output.datatype not in DTYPES or not 0 <= size <= len(body) - at:
            raise FormatError(f"expected the bytes of output {output.name[:80]!r} in the response")
        outputs[output.name] = from_raw(view[at : at + size], output.datatype, output.shape)
        at += size
    bundle, variant = (str(reply.parameters.get(key, "")) for key in ("bundle", "variant"))
    safe = reply.parameters.get("power_safe") is True
    return Answer(reply.id, outputs, reply.model_version, bundle, variant, safe)


def _refusal(status: int, body: bytes, url: str) -> SkerryError:
    try:
        reason = str(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        reason = repr(body[:200])
    message = f"{url} answered {status}: {reason}"
    if status in (429, 503):
        return UnreachableError(message)
    if status == 404:
        return NotFoundError(message)
    if status in (400, 413):
        return UsageError(message)
    return RefusedError(message) if status < 500 else SkerryError(message)
