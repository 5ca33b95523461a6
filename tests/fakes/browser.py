"""Headless Chromium, spoken to in its own protocol: loads pages, and hears what it complains of."""

import asyncio
import base64
import contextlib
import itertools
import json
import re
import tempfile
from collections.abc import AsyncIterator
from typing import Any, Final

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from tests.fakes.programs import find_program

__all__ = ["Page", "open_page"]

TIMEOUT_S: Final = 30.0
OPTIONS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
LISTENING: Final = re.compile(rb"DevTools listening on ws://([^/]+)/")


class Page:
    """One tab. `complaints` are console errors, exceptions, and violations of the policy."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return await asyncio.wait_for(answered, TIMEOUT_S)

    async def go(self, url: str) -> None:
        """Load a page to its end."""
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), TIMEOUT_S)

    async def ask(self, expression: str) -> Any:
        """Return what an expression of JavaScript gives."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait for an expression to be true; a page that is on its way to another is not yet."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                with contextlib.suppress(AssertionError, RuntimeError):
                    if await self.ask(expression):
                        return
                await asyncio.sleep(0.05)

    async def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show pages so wide, on a light or a dark ground."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self) -> bytes:
        """Return the whole page as a PNG."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    async def listen(self) -> None:
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                break
            self._hear(json.loads(message.data))

    def _hear(self, message: Any) -> None:
        if "id" in message:
            answered = self._waiting.pop(message["id"])
            if "error" in message:
                answered.set_exception(RuntimeError(str(message["error"])))
            else:
                answered.set_result(message["result"])
            return
        params = message["params"]
        match message["method"]:
            case "Page.loadEventFired":
                self._loaded.set()
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(str(params["entry"]["text"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(params["args"]))
            case "Audits.issueAdded":
                self.complaints.append(str(params["issue"]))
            case _:
                pass


@contextlib.asynccontextmanager
async def open_page() -> AsyncIterator[Page]:
    """Start a browser with a fresh profile, and give its tab."""
    program = find_program("chromium")
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = await asyncio.create_subprocess_exec(
            program, *OPTIONS, f"--user-data-dir={profile}", "about:blank",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert browser.stderr is not None
        drain = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while (found := LISTENING.search(line := await browser.stderr.readline())) is None:
                    assert line, "chromium ended before it listened"
            drain = asyncio.create_task(browser.stderr.read())
            async with ClientSession() as session:
                host = found[1].decode()
                async with session.get(f"http://{host}/json/list") as answer:
                    tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
                address = tabs[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=64 << 20) as socket:
                    page = Page(socket)
                    ears = asyncio.create_task(page.listen())
                    for domain in ("Page", "Runtime", "Log", "Audits"):
                        await page.call(f"{domain}.enable")
                    yield page
                    ears.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await ears
        finally:
            browser.terminate()
            await browser.wait()
            if drain is not None:
                await drain
