"""Build the notebooks from their sources, in English and in Chinese.

    python notebooks/build.py                      # after a change of words: outputs stay
    python notebooks/build.py --execute            # after a change of code: runs every notebook
    python notebooks/build.py --execute 02_rmsnorm

A source is Markdown. `<!-- en -->` and `<!-- zh -->` begin the two texts of one cell; a fence with
"python" behind it is a code cell, which both languages share. The outputs are those of one
execution, so they are shared as well. What changes from run to run is left out: progress on
stderr, times, metadata of pictures.
"""

import argparse
import base64
import configparser
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "notebooks" / "source"
FOLDERS = {"en": "notebooks", "zh": "notebooks/zh"}
UNPUBLISHED = "OWNER/llama_jax"
"""Stands in badges and in the installing cell until `url` in setup.cfg names the repository."""
NOTICE = {
    "en": f"*(This copy is not published yet: `{UNPUBLISHED}` stands for its place on GitHub. The "
    "badges work once `url` in `setup.cfg` says where that is. Until then, open the notebook in a "
    "checkout.)*",
    "zh": f"*（这一份尚未发布：`{UNPUBLISHED}` 代表它在 GitHub 上的位置。"
    "在 `setup.cfg` 的 `url` 中写明位置之后，徽章才会生效；"
    "在此之前，请在克隆下来的仓库里打开这个 notebook。）*",
}
"""Shown under the badges that lead nowhere."""
INSTALL = """\
# Colab and Kaggle install the project here. Where it is installed already, nothing happens.
import importlib.metadata
import importlib.util
from pathlib import Path

import numpy

if importlib.util.find_spec("llama_jax") is None:
    checkout = [p for p in Path.cwd().parents if (p / "llama_jax/cli.py").exists()]
SOURCE
    tpu = "jax[tpu]" if importlib.util.find_spec("libtpu") else ""
    %pip install --quiet "llama-jax @ {source}" {tpu}
    if importlib.metadata.version("numpy") != numpy.__version__:
        # Keep the NumPy that the kernel has loaded: a new one would need a restart.
        %pip install -qqq --no-deps numpy=={numpy.__version__}"""
PUBLISHED_SOURCE = """\
    source = checkout[0].as_uri() if checkout else "git+https://github.com/REPOSITORY\""""
UNPUBLISHED_SOURCE = f"""\
    if not checkout:
        raise SystemExit(
            "{UNPUBLISHED} is not on GitHub yet: open this notebook in a checkout, or set "
            "url in setup.cfg and run notebooks/build.py"
        )
    source = checkout[0].as_uri()"""
"""Where the installing cell finds the project, with and without `url` in setup.cfg."""
SETTINGS = {
    "figure.dpi": 80,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}
"""Of matplotlib, for the pictures that are kept."""
COLOURS = 64
"""Of a kept picture: a palette takes a third of the bytes."""
RUN = """
import sys, nbclient, nbformat
book = nbformat.read(sys.argv[1], 4)
where = {"metadata": {"path": sys.argv[2]}}
nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=where).execute()
nbformat.write(book, sys.argv[1])
"""


class Cell(NamedTuple):
    """One cell in all languages."""

    code: str = ""
    """Shared by the languages; empty for a cell of text."""
    text: dict[str, str] | None = None
    """By language."""


def read(path: Path) -> list[Cell]:
    """The cells of a source, the installing one included.

    Raises ValueError, with file and line, for a text that one language lacks.
    """
    cells, texts, lines, mode = [], {}, [], ""

    def close(number: int) -> None:
        nonlocal texts
        if mode == "python":
            cells.append(Cell(code="\n".join(lines)))
        elif mode:
            texts[mode] = "\n".join(lines).strip()
        elif "".join(lines).strip():
            raise ValueError(f"{path}:{number}: text belongs behind <!-- en --> or <!-- zh -->")
        lines.clear()

    def finish(number: int) -> None:
        nonlocal texts
        if texts and texts.keys() != FOLDERS.keys():
            raise ValueError(f"{path}:{number}: a text is in {[*texts]} only, not in {[*FOLDERS]}")
        if texts:
            cells.append(Cell(text=texts))
        texts = {}

    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        marker = re.fullmatch(r"<!-- (\w+) -->", line)
        if mode != "python" and (marker or line == "```python"):
            close(number)
            mode = marker[1] if marker else "python"
            if mode in texts or mode == "python":
                finish(number)
        elif mode == "python" and line == "```":
            close(number)
            mode = ""
        else:
            lines.append(line)
    close(number)
    finish(number)
    source = PUBLISHED_SOURCE if repository() else UNPUBLISHED_SOURCE
    install = INSTALL.replace("SOURCE", source).replace("REPOSITORY", repository())
    return [cells[0], Cell(code=install), *cells[1:]]


def repository() -> str:
    """OWNER/NAME on GitHub, from `url` in setup.cfg; "" if it is not set."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser.get("metadata", "url", fallback="").removeprefix("https://github.com/").strip("/")


def joined(text: str) -> str:
    """Text whose lines are joined inside a Chinese sentence, where a line break shows as a gap."""
    wide = re.compile("[\u2014\u2018-\u201d\u2026\u3001-\u30ff\u4e00-\u9fff\uff00-\uffef]")
    lines = [""]
    for line in text.split("\n"):
        before, after = lines[-1], line.lstrip()
        inside = wide.match(before[-1:]) and wide.match(after) and not before.startswith("#")
        lines[-1:] = [before + after] if inside else [before, line]
    return "\n".join(lines[1:])


def badges(path: str) -> str:
    """Links that open the notebook at `path` in the repository."""
    blob = f"github.com/{repository() or UNPUBLISHED}/blob/main/{path}"
    shown = "https://img.shields.io/badge/GitHub-view-181717?logo=github"
    return "\n".join(
        f"[![{name}]({picture})]({link})"
        for name, picture, link in (
            (
                "Open in Colab",
                "https://colab.research.google.com/assets/colab-badge.svg",
                f"https://colab.research.google.com/{blob.replace('.com', '', 1)}",
            ),
            (
                "Open in Kaggle",
                "https://kaggle.com/static/images/open-in-kaggle.svg",
                f"https://kaggle.com/kernels/welcome?src=https://{blob}",
            ),
            ("View on GitHub", shown, f"https://{blob}"),
        )
    )


def other_languages(name: str, language: str) -> str:
    """A link to the same notebook in the other language."""
    if language == "en":
        return f"[中文](zh/{name}.ipynb)"
    return f"[English](../{name}.ipynb)"


def notebook(name: str, cells: Sequence[Cell], language: str) -> nbformat.NotebookNode:
    """The notebook in one language, without outputs."""
    built, path = [], f"{FOLDERS[language]}/{name}.ipynb"
    for number, cell in enumerate(cells):
        text = joined(cell.text[language]) if cell.text else ""
        if number == 0:
            title, _, rest = text.partition("\n")
            links = f"{badges(path)}\n\n{other_languages(name, language)}"
            links += "" if repository() else f"\n\n{NOTICE[language]}"
            text = f"{title}\n\n{links}\n\n{rest.strip()}"
        make = nbformat.v4.new_markdown_cell if cell.text else nbformat.v4.new_code_cell
        built.append(make(text or cell.code, id=f"c{number:02}"))
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return nbformat.v4.new_notebook(cells=built, metadata=metadata)


def execute(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook after a run in a kernel of its own, from an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "book.ipynb"
        nbformat.write(book, file)
        rc = "\n".join(f"{name}: {value}" for name, value in SETTINGS.items())
        (Path(folder) / "matplotlibrc").write_text(rc)
        env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        env |= {"IPYTHONDIR": folder, "JUPYTER_RUNTIME_DIR": folder, "MATPLOTLIBRC": folder}
        command = [sys.executable, "-c", RUN, str(file), folder]
        if subprocess.run(command, env=env).returncode:
            raise SystemExit("a cell failed, see above; nothing was written")
        done = nbformat.read(file, 4)
    for cell in done.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in map(kept, cell.outputs) if o is not None]
    return done


def kept(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """An output as it is kept; None for progress."""
    if output.get("name") == "stderr":
        return None
    output.pop("metadata", None)
    if output.output_type in ("display_data", "execute_result"):
        output.metadata = {}
        if "image/png" in output.data:
            picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
            small = io.BytesIO()
            few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            few.save(small, "png", optimize=True)
            encoded = base64.b64encode(small.getvalue()).decode()
            output.data = {"image/png": encoded}
    return output


def take_outputs(book: nbformat.NotebookNode, outputs: Sequence[list]) -> None:
    """Give the code cells of a notebook their outputs, and numbers from 1."""
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    for number, (cell, own) in enumerate(zip(cells, outputs, strict=True), 1):
        cell.execution_count, cell.outputs = number, own
        for output in own:
            if output.output_type == "execute_result":
                output.execution_count = number


def code(book: nbformat.NotebookNode) -> list[str]:
    """The code cells of a notebook."""
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def build(name: str, *, run: bool) -> None:
    """Write the notebook in every language.

    Raises SystemExit if the code changed and is not to be run.
    """
    cells = read(SOURCES / f"{name}.md")
    books = {language: notebook(name, cells, language) for language in FOLDERS}
    if run:
        done = execute(books["en"])
    else:
        first = ROOT / FOLDERS["en"] / f"{name}.ipynb"
        done = nbformat.read(first, 4) if first.exists() else None
        # The first cell installs: it prints nothing, and another repository is no other code.
        if done is None or code(done)[1:] != code(books["en"])[1:]:
            raise SystemExit(f"{name}: its code changed; build it with --execute {name}")
    outputs = [cell.outputs for cell in done.cells if cell.cell_type == "code"]
    for language, book in books.items():
        take_outputs(book, outputs)
        text = nbformat.writes(book, ensure_ascii=False).rstrip("\n") + "\n"
        (ROOT / FOLDERS[language] / f"{name}.ipynb").write_text(text, encoding="utf-8")


def names() -> list[str]:
    """All notebooks, in order."""
    return sorted(path.stem for path in SOURCES.glob("*.md"))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--execute", action="store_true", help="run the code for its outputs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 02_rmsnorm; all if none")
    arguments = parser.parse_args()
    for name in arguments.names or names():
        build(name, run=arguments.execute)


if __name__ == "__main__":
    main()
