"""README.zh.md keeps step with README.md: the same chapters, commands, tables and links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_TRANSLATED = {"README.md", "notebooks/README.md"}
"""Links of the Chinese text alone: the original, and the list of notebooks in both languages."""


def parts(text):
    """What a translation leaves as it is, in order: heading levels, commands, tables, names.

    Commands are compared without their comments, and prose by what stands in it in code font.
    """
    prose, blocks = "", []
    for number, part in enumerate(re.split(r"^```", text, flags=re.MULTILINE)):
        if number % 2:
            language, *lines = part.splitlines()
            code = [re.sub(r"\s+#.*", "", line).rstrip() for line in lines]
            blocks.append([language, *code])
        else:
            prose += part
    table = [re.findall(r"`[^`]+`", line) for line in prose.splitlines() if line.startswith("|")]
    return {
        "headings": re.findall(r"^#+", prose, flags=re.MULTILINE),
        "blocks": blocks,
        "tables": table,
        "options": {name for name in re.findall(r"`(--[\w.-]+)", prose)},
        "links": set(re.findall(r"\]\(([^)]+)\)", prose)),
    }


ENGLISH, CHINESE = (
    parts((ROOT / name).read_text(encoding="utf-8")) for name in ("README.md", "README.zh.md")
)


@pytest.mark.parametrize("part", ["headings", "blocks", "tables", "options"])
def test_it_has_the_same(part):
    assert CHINESE[part] == ENGLISH[part]


def test_its_links_are_those_of_the_original_and_lead_somewhere():
    own = {link for link in CHINESE["links"] if link not in NOT_TRANSLATED}
    theirs = {link for link in ENGLISH["links"] if not link.startswith("notebooks/")}
    assert own - {"README.zh.md"} == theirs - {"README.zh.md"}
    for link in CHINESE["links"]:
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_a_difference_shows():
    text = "# A\n\n`--x`\n\n```sh\nrun a   # says\n```\n\n| `a` | b |\n"
    assert parts(text) == parts("# 甲\n\n`--x`\n\n```sh\nrun a   # 说\n```\n\n| `a` | 乙 |\n")
    for other in ("## A", "`--y`", "run b", "| `b` |"):
        was = {"## A": "# A", "`--y`": "`--x`", "run b": "run a", "| `b` |": "| `a` |"}[other]
        assert parts(text.replace(was, other)) != parts(text)
