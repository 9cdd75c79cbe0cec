"""The page: its files, what a browser may do with them, and nothing that could become markup."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import llama_jax.serve
from llama_jax.serve.app import PAGE

SCRIPTS = [name for name in PAGE.values() if name.endswith(".js")]
FOLDER = Path(llama_jax.serve.__file__).parent / "page"


class Read(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def tags():
    return Read((FOLDER / "index.html").read_text()).tags


@pytest.mark.parametrize(("path", "name"), PAGE.items())
def test_the_files_come_with_a_strict_policy(server, path, name):
    status, headers, content = server.ask("GET", path)
    assert (status, content) == (200, (FOLDER / name).read_bytes())
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
    assert headers["Content-Type"] == f"{kind[name.rpartition('.')[2]]}; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(tags):
    for tag, attributes in tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style"
            if name in ("src", "href"):
                assert value in ("page.css", *SCRIPTS, "data:,", "#box")
    assert not re.search(r"https?:|//\w", (FOLDER / "page.css").read_text())
    for name in SCRIPTS:
        script = re.sub(r"(?m)^\s*//.*$| // .*$", "", (FOLDER / name).read_text())
        assert not re.search(
            r"https?:|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script
        )


def test_every_control_has_a_name_and_every_label_a_control(tags):
    ids = {a["id"] for _, a in tags if "id" in a}
    labelled = {a["for"] for tag, a in tags if tag == "label" and "for" in a}
    assert labelled <= ids
    for tag, attributes in tags:
        if tag in ("input", "select", "textarea"):
            inside = attributes.get("type") == "checkbox"
            assert inside or attributes["id"] in labelled or "aria-label" in attributes
    assert ("main", {}) in tags
    assert any(a.get("role") == "log" for _, a in tags)
    assert any(a.get("aria-live") == "polite" for _, a in tags)
    for name in SCRIPTS:
        used = re.findall(r'\$\("([a-z_-]+)"\)', (FOLDER / name).read_text())
        assert set(used) <= ids


def channel(value):
    value = value / 255
    return value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4


def luminance(colour):
    """Of #rrggbb, by WCAG 2.2."""
    red, green, blue = (channel(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme):
    blocks = re.findall(r":root \{(.*?)\}", (FOLDER / "page.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", blocks[scheme]))
    texts = {
        "back": ("front", "accent", "quiet"),
        "soft": ("front", "accent", "quiet", "bad"),
        "own": ("front", "accent"),
        "accent": ("on-accent",),
    }
    marks = {"back": ("line",), "soft": ("possible", "unlikely")}
    for least, these in ((4.5, texts), (3.0, marks)):
        for behind, front in ((behind, one) for behind, ones in these.items() for one in ones):
            low, high = sorted((luminance(colours[behind]), luminance(colours[front])))
            assert (high + 0.05) / (low + 0.05) >= least, (behind, front)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here to read it")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one_that_engines_read(name):
    done = subprocess.run(["node", "--check", FOLDER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
