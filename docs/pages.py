"""The pages of the documentation site, made from what the repository says already.

The README's sections, the READMEs of folders, experiments with their sources, and an API reference
from docstrings: each is written once, where it belongs, and becomes a page when the site is built
(`make docs`). A hook of mkdocs; only the functions named on_... are called by it.
"""

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "README.zh.md": "中文",
    "docs/claims.md": "What is proven",
    "experiments/README.md": "All experiments",
    "experiments/launch/README.md": "From a cloud project to a 7B in training",
    "experiments/LOG.md": "Measurements",
    "llama_jax/parallel/README.md": "Parallelism",
    "llama_jax/kernels/README.md": "Attention kernels",
    "CONTRIBUTING.md": "Contributing",
    "CHANGELOG.md": "Changelog",
}
"""Files that are pages as they are, with their titles."""
TABS = {
    "Experiments": ("All experiments", "From a cloud project to a 7B in training", "Measurements"),
    "Explained": ("What is proven", "Parallelism", "Attention kernels"),
    "Project": ("Contributing", "Changelog"),
    "中文": ("中文",),
}
HOME = ("Quick start", "From the shell", "From Python")
"""Sections of the README that stand on the first page."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_LANGUAGES = {".py": "python", ".sh": "sh", ".yaml": "yaml", "": "text"}


def slug(title: str) -> str:
    """The name of a page in its address."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "zh"  # the one title without


def sections(readme: str) -> dict[str, str]:
    """The README's text by title; what stands before the first section has the title ""."""
    parts = re.split(r"^## (.+)\n", readme, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def modules() -> dict[str, list[str]]:
    """The modules of each room of the package, by dotted name; those of no room under ""."""
    rooms: dict[str, list[str]] = {}
    for path in sorted((ROOT / "llama_jax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__main__":
            continue
        if parts[-1] == "__init__":
            parts = parts[:-1]
        room = parts[1] if (ROOT / "llama_jax" / parts[min(1, len(parts) - 1)]).is_dir() else ""
        rooms.setdefault(room, []).append(".".join(parts))
    return rooms


def site() -> tuple[dict[str, str], list]:
    """Every page by its path in the site, and the navigation in mkdocs' form."""
    written: dict[str, tuple[str, str]] = {}  # page: the file it is from, its text
    place: dict[str, str] = {}  # file of the repository: the page that shows it
    found = sections((ROOT / "README.md").read_text())
    home = [found[""], *(f"## {title}\n{found[title]}" for title in HOME)]
    written["index.md"] = ("README.md", "".join(home))
    place["README.md"] = "index.md"
    guide: list = []
    for title, text in found.items():
        if title and title not in HOME:
            page = f"guide/{slug(title)}.md"
            written[page] = ("README.md", f"# {title}\n{text}")
            guide.append({title: page})
    for file, title in FOLDERS.items():
        place[file] = f"{slug(title)}.md"
        written[place[file]] = (file, (ROOT / file).read_text())
    reference: list = []
    for room, names in modules().items():
        page = f"api/{room or 'package'}.md"
        heading = f"llama_jax.{room}" if room else "llama_jax"
        blocks = (f"::: {name}\n" for name in names)
        written[page] = (page, f"# {heading}\n\n" + "\n".join(blocks))
        reference.append({heading: page})
        for name in names:
            stem = name.replace(".", "/")
            place |= {f"{stem}.py": f"{page}#{name}", f"{stem}/__init__.py": f"{page}#{name}"}
    for path in sorted((ROOT / "experiments").rglob("*")):
        if path.suffix in _LANGUAGES and path.is_file():
            file = path.relative_to(ROOT).as_posix()
            place[file] = f"{file.replace('.', '_')}.md"
            fence = f"```{_LANGUAGES[path.suffix]}\n{path.read_text()}```\n"
            written[place[file]] = (file, f"# {file}\n\n{fence}")
    pages = {page: relinked(text, file, page, place) for page, (file, text) in written.items()}
    tabs = {tab: [{t: f"{slug(t)}.md"} for t in titles] for tab, titles in TABS.items()}
    first = [{"Home": "index.md"}, {"Guide": guide}]
    return pages, [*first, *({tab: pages} for tab, pages in tabs.items()), {"API": reference}]


def relinked(text: str, file: str, page: str, place: dict[str, str]) -> str:
    """A file's text with its links led to pages; what no page shows becomes plain words."""

    def link(found: re.Match) -> str:
        picture, words, target = found.groups()
        if target.startswith("#") or "://" in target:
            return found[0]
        meant = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
        if picture and meant.startswith("docs/"):
            shown_at = meant.removeprefix("docs/")
        elif meant in place:
            shown_at = place[meant]
        else:
            return words
        return f"{picture}[{words}]({posixpath.relpath(shown_at, posixpath.dirname(page) or '.')})"

    blocks = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(b if b.startswith("```") else _LINK.sub(link, b) for b in blocks)


def on_config(config):
    """The navigation."""
    config.nav = site()[1]
    return config


def on_files(files, config):
    """The pages."""
    from mkdocs.structure.files import File

    for page, text in site()[0].items():
        files.append(File.generated(config, page, content=text))
    return files
