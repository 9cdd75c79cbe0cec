"""The notebooks: built from their sources, one code in two languages, installed and run."""

import base64
import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nbformat")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))
import build  # noqa: E402

NAMES = build.names()
pytestmark = pytest.mark.usefixtures("optimized")
each = pytest.mark.parametrize("name", NAMES)
each_language = pytest.mark.parametrize("language", build.FOLDERS)


def kept(name, language="en"):
    """A notebook as it is in git."""
    path = ROOT / build.FOLDERS[language] / f"{name}.ipynb"
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(book):
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_has_a_source_and_a_translation():
    for folder in build.FOLDERS.values():
        found = sorted(path.stem for path in (ROOT / folder).glob("*.ipynb"))
        assert found == NAMES, folder


@each_language
@each
def test_it_is_what_its_source_builds(name, language):
    """Words and code; if this fails, run `python notebooks/build.py` (--execute for new code)."""
    expected = build.notebook(name, build.read(build.SOURCES / f"{name}.md"), language)
    found = kept(name, language)
    assert [c["id"] for c in found["cells"]] == [c.id for c in expected.cells]
    for cell, wanted in zip(found["cells"], expected.cells, strict=True):
        assert "".join(cell["source"]) == wanted.source


@each
def test_the_languages_share_code_and_outputs(name):
    assert code_cells(kept(name, "en")) == code_cells(kept(name, "zh"))


@each
def test_it_is_kept_as_executed_and_small(name):
    pictures = 0
    for number, cell in enumerate(code_cells(kept(name)), 1):
        assert cell["execution_count"] == number
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", "progress is not kept"
            if picture := output.get("data", {}).get("image/png"):
                pictures += 1
                assert len(base64.b64decode(picture)) < 40_000
    assert pictures >= 2


@each_language
@each
def test_its_links_lead_somewhere(name, language):
    folder = ROOT / build.FOLDERS[language]
    text = "\n".join("".join(c["source"]) for c in kept(name, language)["cells"])
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)\)", text):
        assert (folder / target).exists(), target
    opened = re.findall(rf"/blob/main/({build.FOLDERS[language]}/[\w/.]+)\)", text)
    assert opened == [f"{build.FOLDERS[language]}/{name}.ipynb"] * 3


@each_language
def test_the_list_names_every_notebook(language):
    text = (ROOT / "notebooks/README.md").read_text(encoding="utf-8")
    folder = Path(build.FOLDERS[language]).relative_to("notebooks")
    for name in NAMES:
        assert f"({folder / name}.ipynb)" in text


SOURCE = """\
<!-- en -->
# Title
Words.
<!-- zh -->
# 标题
文字。

```python
x = 1
```

<!-- en -->
More.

```sh
a command
```
<!-- zh -->
更多。
"""


def test_a_source_is_read_cell_by_cell(tmp_path):
    path = tmp_path / "source.md"
    path.write_text(SOURCE, encoding="utf-8")
    title, install, code, more = build.read(path)
    assert title.text == {"en": "# Title\nWords.", "zh": "# 标题\n文字。"}
    assert install.code.startswith("# Colab and Kaggle install the project here.")
    assert code.code == "x = 1"
    assert more.text["en"] == "More.\n\n```sh\na command\n```"
    first = build.notebook("name", [title], "zh").cells[0].source
    assert first.startswith("# 标题\n\n[![Open in Colab]")
    assert "[English](../name.ipynb)\n\n" in first
    assert first.endswith("\n\n文字。")


def test_the_place_of_the_repository_is_set_in_one_file(tmp_path, monkeypatch):
    path = tmp_path / "source.md"
    path.write_text(SOURCE, encoding="utf-8")

    def shown():
        title, install, *_ = build.notebook("name", build.read(path), "en").cells
        return title.source, install.source

    monkeypatch.setattr(build, "ROOT", tmp_path)
    title, install = shown()  # a checkout that does not know it says so
    assert build.NOTICE["en"] in title
    assert build.UNPUBLISHED in title
    assert build.UNPUBLISHED in install
    (tmp_path / "setup.cfg").write_text("[metadata]\nurl = https://github.com/someone/fork\n")
    title, install = shown()
    assert title.count("github.com/someone/fork/blob/main/notebooks/name.ipynb") == 2
    assert "git+https://github.com/someone/fork" in install
    assert "OWNER" not in title + install


def test_installing_what_is_not_published_says_so(tmp_path, monkeypatch):
    """Not as an error of git: nothing is asked of GitHub."""
    path = tmp_path / "source.md"
    path.write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    install = re.sub("%pip.*", "pip()", build.read(path)[1].code)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("importlib.metadata.version", lambda name: np.__version__)
    monkeypatch.chdir(tmp_path)
    installed = []
    space = {"pip": lambda: installed.append(space["source"])}
    with pytest.raises(SystemExit, match=r"not on GitHub yet: open .* checkout, or set url"):
        exec(install, space)
    (tmp_path / "llama_jax").mkdir()
    (tmp_path / "llama_jax/cli.py").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    exec(install, space)
    assert installed == [tmp_path.as_uri()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SOURCE.replace("<!-- zh -->\n更多。\n", ""), "only"),
        (SOURCE.replace("x = 1\n```\n", "x = 1\n```\nlost words\n"), "belongs behind"),
    ],
    ids=["a text in one language", "a text in none"],
)
def test_a_source_that_is_not_whole_is_refused(tmp_path, text, said):
    path = tmp_path / "source.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"source\.md:\d+: .*{said}"):
        build.read(path)


def test_new_words_keep_outputs_and_new_code_asks_for_a_run(tmp_path, monkeypatch):
    name = NAMES[0]
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    for folder in build.FOLDERS.values():
        (tmp_path / folder).mkdir()
        shutil.copy(ROOT / folder / f"{name}.ipynb", tmp_path / folder)
    source = (ROOT / "notebooks/source" / f"{name}.md").read_text(encoding="utf-8")
    copied = tmp_path / f"{name}.md"
    before = code_cells(kept(name))

    copied.write_text(source + "<!-- en -->\nNew.\n<!-- zh -->\n新的。\n", encoding="utf-8")
    build.build(name, run=False)
    for folder, word in (("notebooks", "New."), ("notebooks/zh", "新的。")):
        book = json.loads((tmp_path / folder / f"{name}.ipynb").read_text(encoding="utf-8"))
        assert book["cells"][-1]["source"] == [word]
        assert code_cells(book) == before

    copied.write_text(source + "```python\nnew = 1\n```\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="--execute"):
        build.build(name, run=False)


@pytest.mark.slow
@each
def test_it_runs(name):
    """The code is the same in all languages, so one of them is enough."""
    cells = build.read(build.SOURCES / f"{name}.md")
    done = build.execute(build.notebook(name, cells, "en"))
    outputs = [o for cell in done.cells if cell.cell_type == "code" for o in cell.outputs]
    assert [o for o in outputs if "image/png" in o.get("data", {})], "no picture was drawn"


def listed(name):
    """The lines of a list in tests/machines/, without comments."""
    lines = (ROOT / f"tests/machines/{name}.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("machine", ["colab-2026.01", "colab-tpu-2026.01"])
def test_the_first_cell_installs_without_a_restart(machine, tmp_path):
    """pip resolves the requirements where the packages of the list are installed, and replaces
    nothing that the kernel has loaded, but NumPy, which the cell puts back (jax 0.11 asks for 2.1
    or newer and runs with 2.0). Needs a package index.
    """
    call = {"capture_output": True, "text": True, "check": True}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], **call)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    before = dict(line.split("==") for line in listed(machine))
    for name, version in before.items():
        folder = site / f"{plain(name).replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / "METADATA").write_text(text)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"].split("\n")
    wanted += ["jax[tpu]"] if "libtpu" in before else []
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "bin/python"), "install"]
    pip += ["--dry-run", "--quiet", "--report", "-", *filter(None, wanted)]
    report = json.loads(subprocess.run(pip, **call).stdout)
    after = {plain(p["metadata"]["name"]): p["metadata"]["version"] for p in report["install"]}
    assert {"jax", "flax", "tyro"} <= after.keys(), after
    assert after.keys() & set(listed("loaded")) == {"numpy"}, after
    assert ("libtpu" in after) == ("libtpu" in before)
    assert not after.keys() & {"torch", "tensorflow"}
