"""The notebooks: built from their sources, one code in two languages, and run from end to end."""

import base64
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbformat")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))
import build  # noqa: E402

NAMES = build.names()
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
    assert "find_spec" in install.code
    assert code.code == "x = 1"
    assert more.text["en"] == "More.\n\n```sh\na command\n```"
    first = build.notebook("name", [title], "zh").cells[0].source
    assert first.startswith("# 标题\n\n[![Open in Colab]")
    assert first.endswith("[English](../name.ipynb)\n\n文字。")


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
