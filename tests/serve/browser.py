"""Chromium without a window, used as a person uses it: typed to, clicked, looked at."""

import contextlib
import ctypes
import json
import os
import shutil
from pathlib import Path

from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)  # fmt: skip
WIDE, PHONE = (1100, 760), (360, 640)
_SET_CHILD_SUBREAPER = 36  # of <sys/prctl.h>


@contextlib.contextmanager
def browsing(place: Path):
    """A driver of Chromium whose profile lies in `place`, with no network but this machine.

    Chromium leaves processes behind that only their parent can take away, and in a container
    nobody is it: they are made this process's children.
    """
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={place / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = ChromeService(DRIVER, env={**os.environ, "HOME": str(place)})
    libc, before = ctypes.CDLL(None), _children()
    libc.prctl(_SET_CHILD_SUBREAPER, 1)
    driver = Chrome(options, service)
    try:
        yield driver
    finally:
        driver.quit()
        for child in _children() - before:
            if Path(f"/proc/{child}/comm").read_text().startswith("chrom"):
                os.waitpid(child, 0)
        libc.prctl(_SET_CHILD_SUBREAPER, 0)


def _children() -> set[int]:
    """Of all threads of this process."""
    found = set()
    for listed in Path("/proc/self/task").glob("*/children"):
        found |= set(map(int, listed.read_text().split()))
    return found


class Browser:
    """A tab with the page of one server after another."""

    def __init__(self, driver: Chrome):
        self.driver = driver
        self._servers, self._entries, self.sent, self._told = [], [], [], 0
        self.look()
        self._read_logs()
        self._entries.clear()
        self.sent.clear()

    def cdp(self, command, **arguments):
        """What only Chromium's own protocol can do."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    # ---- Going somewhere

    def visit(self, server):
        """The page as somebody sees it who was never there."""
        self._servers.append(server.url)
        self.driver.get("about:blank")
        self.cdp("Storage.clearDataForOrigin", origin=server.url[:-1], storageTypes="all")
        self.driver.get(server.url)

    def open(self, server):
        """The same, once it is ready."""
        self.visit(server)
        self.ready()

    def ready(self):
        self.wait(lambda: self.text("#model"))

    def reload(self):
        self.driver.refresh()
        self.ready()

    def look(self, *, size=WIDE, dark=False):
        """A window of another size, or the other colours."""
        width, height = size
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])

    # ---- Seeing

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, css):
        """All there is, not only what fits the window."""
        return self.run("return document.querySelector(arguments[0]).textContent", css)

    def texts(self, css):
        found = "return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent)"
        return self.run(found, css)

    def said(self):
        """The texts of all messages; both, where there are two answers."""
        return self.texts("article p")

    def focused(self):
        return self.run("return document.activeElement.id || document.activeElement.textContent")

    def wait(self, true, seconds=30):
        return WebDriverWait(self.driver, seconds, 0.02).until(lambda _: true())

    def settle(self):
        """Wait for the end of an answer."""
        self.wait(lambda: self.one("#send").is_displayed())

    # ---- Doing

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def click(self, css, number=0):
        self.all(css)[number].click()

    def point(self, node):
        ActionChains(self.driver).move_to_element(node).perform()

    def set(self, **values):
        """Settings by their names, as if they had been chosen by hand."""
        for name, value in values.items():
            self.run(
                "const node = document.getElementById(arguments[0]);"
                "node[node.type === 'checkbox' ? 'checked' : 'value'] = arguments[1];"
                "node.dispatchEvent(new Event('change'));",
                name, value,
            )  # fmt: skip

    def write(self, text):
        """Send a message, and wait until its answer is asked for."""
        self.one("#box").send_keys(text, Keys.ENTER)
        asked = "article.user:nth-last-child(2) p"
        self.wait(lambda: [one.strip() for one in self.texts(asked)] == [text.strip()])

    def ask(self, text):
        """Send a message; the answer."""
        self.write(text)
        self.settle()
        return self.said()[-1]

    # ---- What the browser noticed

    def _read_logs(self):
        self._entries += self.driver.get_log("browser")
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                self.sent.append(event["params"]["request"])

    def bodies(self):
        """What the page sent since this was asked last."""
        self._read_logs()
        news, self._told = self.sent[self._told :], len(self.sent)
        return [json.loads(one["postData"]) for one in news if "postData" in one]

    def failed_loads(self):
        """What the browser could not load, each told only once; the rest of its log stays."""
        self._read_logs()
        failed = [e["message"] for e in self._entries if e["source"] == "network"]
        self._entries = [e for e in self._entries if e["source"] != "network"]
        return failed

    def complaints(self):
        """Errors of scripts, violations of the policy, failed loads that no test expected; and
        requests to anybody else."""
        self._read_logs()
        foreign = [
            one["url"] for one in self.sent
            if not one["url"].startswith((*self._servers, "data:", "about:", "blob:"))
        ]  # fmt: skip
        return [entry["message"] for entry in self._entries] + foreign
