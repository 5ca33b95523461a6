"""Blocking work beside the event loop, in threads that never hold up the program's end."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["beside"]

T = TypeVar("T")


async def beside(work: Callable[[], T], name: str) -> T:
    """Run blocking work in a thread of its own and return its result.

    When the caller is cancelled the thread goes on, unheard; it is a daemon, so that a
    silent peer cannot keep the program alive, as `asyncio.to_thread` would let it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None is a T here

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
