"""A headless Chromium, driven over the WebDriver protocol, as a person would use it."""

import base64
import contextlib
import http.client
import json
import re
import subprocess
import tempfile
import time

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Enter": "\ue007", "Tab": "\ue004", "Escape": "\ue00c", "Shift": "\ue008"}


class Browser:
    """One window."""

    def __init__(self, port):
        self._port, self._session = port, ""
        options = {"args": [*FLAGS, f"--user-data-dir={tempfile.mkdtemp()}"]}
        wanted = {
            "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}
        }  # fmt: skip
        made = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/{made['sessionId']}"

    def _call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        content = None if method != "POST" else json.dumps(body or {})
        connection.request(method, f"/session{self._session}{path}", content)
        answer = json.loads(connection.getresponse().read())["value"]
        connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["message"].splitlines()[0])
        return answer

    def open(self, url):
        self._call("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """What a function body of JavaScript returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, condition, *arguments, seconds=60):
        """Until an expression of JavaScript is true; what it is then."""
        until = time.monotonic() + seconds
        while not (found := self.run(f"return {condition}", *arguments)):
            assert time.monotonic() < until, f"{condition} did not come true"
            time.sleep(0.05)
        return found

    def find(self, selector):
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return found[ELEMENT]

    def click(self, selector):
        self._call("POST", f"/element/{self.find(selector)}/click")

    def write(self, selector, text):
        """Type into a field, whose text is replaced."""
        self._call("POST", f"/element/{self.find(selector)}/clear")
        self._call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def press(self, *names):
        """Keys one after another, wherever the focus is; a single character is itself."""
        actions = []
        for name in names:
            key = KEYS.get(name, name)
            actions += [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        keyboard = {"type": "key", "id": "keyboard", "actions": actions}
        self._call("POST", "/actions", {"actions": [keyboard]})

    def devtools(self, command, **parameters):
        """A command of Chromium's own protocol."""
        body = {"cmd": command, "params": parameters}
        return self._call("POST", "/goog/cdp/execute", body)

    def size(self, width, height):
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    def dark(self, wanted):
        value = "dark" if wanted else "light"
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def complaints(self):
        """What the console holds: errors, warnings, violations of the page's policy."""
        return [e["message"] for e in self._call("POST", "/se/log", {"type": "browser"})]

    def close(self):
        self._call("DELETE", "")


@contextlib.contextmanager
def browser():
    """A browser that is gone afterwards."""
    command = ["chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        try:
            for line in driver.stdout:
                if found := re.search(r"started successfully on port (\d+)", line):
                    break
            window = Browser(int(found[1]))
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()
