"""Asks the verifier: a child process with python-tuf, alive only while it is needed.

The control process stays small and never decodes TUF metadata itself: a request goes to
the child's standard input, an answer comes from its standard output, both MessagePack.
"""

import asyncio
import contextlib
import sys

import msgspec

from skerry.canonical import from_msgpack, to_msgpack
from skerry.errors import FormatError, SkerryError, UnreachableError
from skerry.trust import CatalogTarget, DirectorTarget, SignedTime

__all__ = ["VerifyAnswer", "VerifyRequest", "verify"]

MAX_ANSWER_BYTES = 256 << 10
MAX_REQUEST_BYTES = 1 << 20


class VerifyRequest(msgspec.Struct, frozen=True):
    """What is to be verified, against which roots, and where metadata is kept."""

    target: str  # path in the catalog; empty to refresh only
    director: dict[str, bytes]  # metadata file name -> bytes
    catalog_url: str  # of the catalog's metadata
    catalog_root: bytes  # from enrolment
    director_root: bytes
    directory: str  # holds catalog/ and director/
    now: float  # Unix seconds by the device's own clock
    timeout_s: float
    ca_file: str = ""  # of the authorities that an https server's certificate must be signed by
    cert_file: str = ""  # of this device
    key_file: str = ""
    director_url: str = ""  # of the director's roots; empty: only those carried
    signed: list[SignedTime] = []  # what time it is at least, by the fleet's message keys
    root_floor: int = 0  # version of the director's root when that was signed


class VerifyAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the metadata says, or why it is refused.

    With a `code` there is no target, and the rest is what was verified before the refusal.
    `transient` means that it may be otherwise later: no connection, or a disk that is full.
    """

    assigned: DirectorTarget | None = None
    released: CatalogTarget | None = None
    metadata: dict[str, int] = {}  # versions seen
    message_keys: dict[str, bytes] = {}  # raw, by key id, of the latest director root
    until: dict[str, float] = {}  # by repository: when its timestamp expires, Unix seconds
    code: str = ""
    message: str = ""
    transient: bool = False


async def verify(request: VerifyRequest, timeout_s: float) -> VerifyAnswer:
    """Verify in a child process, which is killed after `timeout_s` seconds.

    Raises:
        UnreachableError: it took too long.
        SkerryError: the child failed without an answer.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent.verifier",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await child.communicate(to_msgpack(request))
    except TimeoutError:
        raise UnreachableError(
            f"expected the verifier to end within {timeout_s:.0f} s; trying again"
        ) from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    try:
        return from_msgpack(out, VerifyAnswer, limit=MAX_ANSWER_BYTES)
    except FormatError:
        last = err.decode(errors="replace").strip().splitlines()[-1:]
        raise SkerryError(
            f"the verifier ended with {child.returncode} and no answer: {' '.join(last)[:300]}"
        ) from None
