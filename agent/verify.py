"""Asks the verifier: a child process with python-tuf, alive only while it is needed.

The control process stays small and never decodes TUF metadata itself: a request goes to
the child's standard input, an answer comes from its standard output, both MessagePack.
"""

import asyncio
import contextlib
import sys

from agent.verify_protocol import MAX_ANSWER_BYTES, VerifyAnswer, VerifyRequest
from skerry.canonical import from_msgpack, to_msgpack
from skerry.errors import FormatError, SkerryError, UnreachableError

__all__ = ["VerifyAnswer", "VerifyRequest", "verify"]


async def verify(request: VerifyRequest, timeout_s: float) -> VerifyAnswer:
    """Verify in a child process, which is killed after `timeout_s` seconds.

    Raises:
        UnreachableError: it took too long.
        SkerryError: the child failed without an answer.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent.verifier_child",
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
