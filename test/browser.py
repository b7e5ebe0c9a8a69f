"""A headless Chromium, spoken to through its debugging pipe: no driver, no package, no port.

python3 test/browser.py work/report.html picture.png [WIDTH HEIGHT [dark]]
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
# No sandbox: root has none. What a browser does of its own accord is switched off, so that each
# request is the page's.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
    "about:blank",
)


class Page:
    """One page of the browser: commands of the DevTools protocol, and the events that came
    meanwhile.
    """

    def __init__(self, send: int, receive: Any) -> None:
        self.send, self.receive, self.count, self.session = send, receive, 0, ""
        self.events: List[Dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def read(self) -> Dict[str, Any]:
        """The next message of the browser: they are separated by a zero byte."""
        message = bytearray()
        while not message.endswith(b"\0"):
            byte = self.receive.read(1)
            if not byte:
                raise RuntimeError("the browser has ended")
            message += byte
        return dict(json.loads(message[:-1].decode("utf-8", "surrogatepass")))

    def __call__(self, method: str, **parameters: Any) -> Dict[str, Any]:
        """Run a command; its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def open(
        self,
        path: Path,
        width: int = 1200,
        height: int = 900,
        dark: bool = False,
        media: str = "screen",
    ) -> None:
        """Load a file, as on a screen of that size, to its end."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self(
            "Emulation.setEmulatedMedia",
            media=media,
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.events.clear()
        self("Page.navigate", url=path.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives on the page."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def told(self, *methods: str) -> List[Dict[str, Any]]:
        """The parameters of the events of these kinds since the page was opened."""
        self.value("1")  # all that came before it is read then
        return [event["params"] for event in self.events if event["method"] in methods]

    def picture(self, whole: bool = False) -> bytes:
        """PNG of what is seen, or of the whole page."""
        return base64.b64decode(
            self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        )


@contextlib.contextmanager
def browser(program: Optional[str] = PROGRAM) -> Iterator[Page]:
    """A page of a fresh browser, which ends with the block."""
    assert program, "there is no Chromium on the PATH"
    ours_in, its_out = os.pipe()
    its_in, ours_out = os.pipe()
    profile = tempfile.mkdtemp()
    # The protocol wants descriptors 3 and 4.
    shell = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
    child = subprocess.Popen(
        [
            "bash",
            "-c",
            shell,
            "bash",
            str(its_in),
            str(its_out),
            program,
            f"--user-data-dir={profile}",
            *OPTIONS,
        ],
        pass_fds=(its_in, its_out),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(its_in)
    os.close(its_out)
    try:
        with open(ours_in, "rb") as receive:
            page = Page(ours_out, receive)
            yield page
            page.session = ""
            page("Browser.close")
    finally:
        os.close(ours_out)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        shutil.rmtree(
            profile, ignore_errors=True
        )  # what it had started may still write for a moment


if __name__ == "__main__":
    size = [int(word) for word in sys.argv[3:5]] or [1200, 900]
    with browser() as shown:
        shown.open(Path(sys.argv[1]), size[0], size[1], "dark" in sys.argv)
        Path(sys.argv[2]).write_bytes(shown.picture())
