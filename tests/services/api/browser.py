"""A real browser for the tests: headless Chromium, driven over its DevTools protocol."""

import asyncio
import base64
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.waiting import PATIENCE_SECONDS

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def find_browser() -> str | None:
    """Path of a Chromium, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """One open page; `errors` collects its exceptions and error logs."""

    def __init__(self, socket: ClientConnection, *, port: int = 0) -> None:
        self._socket, self._port = socket, port
        self._ids = itertools.count(1)
        self.errors: list[str] = []
        self.requests: list[str] = []

    @asynccontextmanager
    async def tab(self) -> AsyncIterator["Page"]:
        """Another tab of the same window, in front of this one."""
        target = await self.call("Target.createTarget", url="about:blank")
        async with _connected(self._port, target["targetId"]) as page:
            yield page

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send one command of the protocol, and return its result."""
        number = next(self._ids)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                message = json.loads(await self._socket.recv())
                if message.get("id") == number:
                    assert "error" not in message, message
                    return dict(message["result"])
                self._note(message)

    async def open(self, url: str, *, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Open an address in a window of this size, light or dark."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true; one that raises, as while a page loads, counts as false."""
        guarded = f"(() => {{ try {{ return Boolean({expression}); }} catch {{ return false; }} }})()"
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await self.evaluate(guarded):  # noqa: ASYNC110  a page
                    await asyncio.sleep(0.05)
        except TimeoutError:
            shown = await self.evaluate("document.body.innerText")
            raise AssertionError(f"never true: {expression}; errors {self.errors}; shown:\n{shown}") from None

    async def picture(self, path: Path) -> None:
        """A PNG of the full page."""
        answer = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))  # noqa: ASYNC240  one small file

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))
            case "Log.entryAdded" if message["params"]["entry"]["level"] == "error":
                self.errors.append(str(message["params"]["entry"]))
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])


def _written(port_file: Path) -> bool:
    return port_file.is_file() and "\n" in port_file.read_text()


@asynccontextmanager
async def _connected(port: int, target: str) -> AsyncIterator[Page]:
    address = f"ws://127.0.0.1:{port}/devtools/page/{target}"
    async with connect(address, max_size=None, proxy=None) as socket:
        yield Page(socket, port=port)


@asynccontextmanager
async def browsing(program: str, profile: Path) -> AsyncIterator[Page]:
    """A browser with a new profile, closed afterwards."""
    process = await asyncio.create_subprocess_exec(
        program, *_ARGUMENTS, f"--user-data-dir={profile}", "about:blank", stderr=asyncio.subprocess.PIPE
    )
    try:
        port_file = profile / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not _written(port_file):  # noqa: ASYNC110  another process writes it
                await asyncio.sleep(0.05)
        port, path = port_file.read_text().split("\n")[:2]
        async with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as root:
            target = await Page(root).call("Target.createTarget", url="about:blank")
            async with _connected(int(port), target["targetId"]) as page:
                yield page
            with suppress(Exception):
                await Page(root).call("Browser.close")
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()
