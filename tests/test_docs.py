"""The documentation site: its pages, links and claims, without the packages that build it."""

import ast
import posixpath
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pages = runpy.run_path(str(ROOT / "docs/pages.py"))


@pytest.fixture(scope="module")
def site():
    return pages["site"]()


def leaves(navigation):
    for entry in navigation:
        (value,) = entry.values()
        yield from [value] if isinstance(value, str) else leaves(value)


def test_every_section_of_the_readme_is_a_page_once(site):
    written, navigation = site
    titles = re.findall(r"^## (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = list(leaves(navigation))
    assert len(shown) == len(set(shown))
    assert set(shown) <= set(written)
    for title in titles:
        on_home = f"\n## {title}\n" in written["index.md"]
        assert on_home != (f"guide/{pages['slug'](title)}.md" in shown), title


def test_every_module_is_in_the_reference_once(site):
    written, _ = site
    named = re.findall(r"^::: (\S+)$", "".join(written.values()), re.MULTILINE)
    files = {p for p in (ROOT / "llama_jax").rglob("*.py") if p.name != "__main__.py"}
    assert len(named) == len(set(named)) == len(files)
    for name in named:
        stem = ROOT / name.replace(".", "/")
        assert stem.with_suffix(".py") in files or stem / "__init__.py" in files, name


def test_no_module_is_titled_with_a_question_word():
    question = re.compile(r"(What|Whom?|Whether|How|Which|Where)\b")
    for path in (ROOT / "llama_jax").rglob("*.py"):
        title = ast.get_docstring(ast.parse(path.read_text()))
        assert title, f"{path} has no docstring"
        assert not question.match(title), f"{path}: {title.splitlines()[0]}"


def test_every_link_leads_to_a_page_of_the_site(site):
    written, _ = site
    linked = 0
    for page, text in written.items():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if "://" in target or target.startswith("#"):
                continue
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            assert path.partition("#")[0] in written or (ROOT / "docs" / path).is_file(), target
            linked += 1
    assert linked > 30
    assert "api/model.md#llama_jax.model.layer" in "".join(written.values())


def test_a_link_to_what_is_no_page_becomes_its_words():
    text = "[a](b.md), [c](d.ipynb), ![p](../docs/images/p.png), [w](https://x.y/z)\n```\n[a](b.md)\n```"
    said = pages["relinked"](text, "x/README.md", "guide/x.md", {"x/b.md": "b.md"})
    assert said == (
        "[a](../b.md), c, ![p](../images/p.png), [w](https://x.y/z)\n```\n[a](b.md)\n```"
    )


def test_every_claim_names_tests_that_exist():
    rows = re.findall(r"^\| (.+) \| `pytest (.+)` \|$", (ROOT / "docs/claims.md").read_text(), re.M)
    assert len(rows) > 15
    for claim, arguments in rows:
        paths = arguments.removeprefix("-m slow ").split()
        assert paths, claim
        assert all((ROOT / path).exists() for path in paths), claim


def test_the_site_loads_nothing_from_elsewhere():
    text = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in text
    assert not re.search(r"https?://", text)
