"""OpenAssistant's message trees: answers to one question side by side, ranked by people.

Messages that are deleted, failed their review or were written by a model (`synthetic`) are left
out, with all that was said below them. As dialogues: the path that takes the answer of the best
rank everywhere, and the first follow-up question that was answered. As preferences: every two
ranked answers to one question, the better rank chosen; ranks say nothing of how much better, so
there is no rating. As prompts: every question, with what was said before it.
(github.com/LAION-AI/Open-Assistant, `*.trees.jsonl.gz`)

The same trees are also published with one message a row (oasst1 and oasst2 on the Hugging Face hub,
`*.messages.jsonl.gz`); `trees` puts those together.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from llama_jax.config import require
from llama_jax.data.formats.items import (
    TIE,
    Drop,
    Item,
    Row,
    entries,
    flag,
    message,
    must,
    text,
    whole,
)
from llama_jax.data.records import Dialogue, Message, Preference, Prompt
from llama_jax.runtime.files import AnyPath, shown

MAX_DEPTH = 100
"""Maximum number of messages from the root to a leaf; real trees have about ten."""
_ROLES = {"prompter": "user", "assistant": "assistant"}
_LEFT_OUT = (
    ("deleted", True, "a message that was deleted"),
    ("review_result", False, "a message that failed its review"),
    ("synthetic", True, "a message that a model wrote"),
)
_LOST = "a message whose parent is not in the data"
_KEPT = ("text", "role", "rank", *(key for key, _, _ in _LEFT_OUT))


class _Node(NamedTuple):
    said: Message
    rank: float
    """0 is the best; infinity where nobody ranked."""
    replies: list["_Node"]


def dialogues(row: Row) -> Iterator[Item]:
    """The best path through the tree."""
    root = yield from _kept(row)
    if root is None:
        return
    path = _best_path(root)
    if len(path) < 2:
        yield Drop("no answer is left")
        return
    yield Dialogue(messages=tuple(path))


def preferences(row: Row) -> Iterator[Item]:
    """Pairs of answers to every question of the tree."""
    root = yield from _kept(row)
    pairs = 0
    for path, node in _questions(root):
        ranked = sorted((r for r in node.replies if r.rank < math.inf), key=lambda r: r.rank)
        for better, worse in itertools.combinations(ranked, 2):
            pairs += 1
            if better.rank == worse.rank:
                yield TIE
                continue
            yield Preference(
                messages=path, chosen=better.said["content"], rejected=worse.said["content"]
            )
    if root is not None and not pairs:
        yield Drop("no question has two ranked answers")


def prompts(row: Row) -> Iterator[Item]:
    """Every question of the tree with the conversation before it."""
    root = yield from _kept(row)
    for path, _ in _questions(root):
        yield Prompt(messages=path)


def is_message(row: Row) -> bool:
    """Whether a row is one message, and no tree of them."""
    return row.get("prompt") is None


def trees(rows: Iterable[tuple[AnyPath, int, Row]]) -> Iterator[tuple[AnyPath, int, Row]]:
    """Messages in any order as trees, each with the file and row of its question.

    Replies to a missing message become rows without a tree. All messages are held in memory at
    once: 0.2 GB for the 135,000 of oasst2.

    Raises InputError, with file and row, for a message without an id, with a duplicate id, or that
    is its own ancestor.
    """
    found: dict[str, tuple[AnyPath, int, Row, str | None]] = {}
    for path, number, row in rows:
        name, parent, where = row["message_id"], row.get("parent_id"), f"{path}, row {number}"
        must(isinstance(name, str), f"{where}: message_id must be text", name)
        must(parent is None or isinstance(parent, str), f"{where}: parent_id must be text", parent)
        require(name not in found, f"{where}: message_id {shown(name)} comes twice")
        found[name] = path, number, {key: row.get(key) for key in _KEPT} | {"replies": []}, parent
    tops = [entry for entry in found.values() if entry[3] not in found]
    for _, _, said, parent in found.values():
        if parent in found:
            found[parent][2]["replies"].append(said)
    below = {id(entry[2]): _all_below(entry[2]) for entry in tops}
    if sum(below.values()) < len(found):
        path, number = _first_in_a_circle(found)
        require(False, f"{path}, row {number}: this message is an answer to itself")
    for path, number, top, parent in tops:
        yield path, number, {"prompt": top} if parent is None else {"lost": below[id(top)]}


def _all_below(message: Row) -> int:
    """Messages of a tree, its root included."""
    waiting, count = [message], 0
    while waiting:
        waiting.extend(waiting.pop()["replies"])
        count += 1
    return count


def _first_in_a_circle(found: dict[str, tuple[AnyPath, int, Row, str | None]]) -> tuple:
    """File and row of a message that leads to no question, however far one goes up."""
    for name, (path, number, _, parent) in found.items():
        seen = {name}
        while parent in found and parent not in seen:
            seen.add(parent)
            parent = found[parent][3]
        if parent == name:
            return path, number
    raise AssertionError("there is a circle")


def of_trees(reader: Callable[[Row], Iterator[Item]]) -> Callable[[Row], Iterator[Item]]:
    """A reader for the results of `trees`, from a reader of trees."""

    def read(row: Row) -> Iterator[Item]:
        for _ in range(row.get("lost", 0)):
            yield Drop(_LOST)
        if "prompt" in row:
            yield from reader(row)

    return read


def _kept(row: Row) -> Iterator[Drop]:
    """Yields a Drop for each message left out and returns the tree that remains, or None."""
    dropped: list[Drop] = []
    root = _parse(row.get("prompt"), "prompter", 1, dropped)
    yield from dropped
    return root


def _parse(value: Any, role: str, depth: int, dropped: list[Drop]) -> _Node | None:
    require(depth <= MAX_DEPTH, f"replies are nested more than {MAX_DEPTH} deep")
    must(isinstance(value, dict), "a message must be an object", value)
    must(value.get("role") == role, f"the role of this message must be {role}", value.get("role"))
    replies = entries(value, "replies") if value.get("replies") is not None else []
    for key, bad, reason in _LEFT_OUT:
        if flag(value, key) is bad:
            dropped.append(Drop(reason))
            return None
    other = "assistant" if role == "prompter" else "prompter"
    below = (_parse(reply, other, depth + 1, dropped) for reply in replies)
    rank = math.inf if value.get("rank") is None else float(whole(value, "rank", 0, 10**6))
    said = message(_ROLES[role], text(value, "text"))
    return _Node(said, rank, [reply for reply in below if reply is not None])


def _best_path(root: _Node) -> list[Message]:
    path, node = [root.said], root
    while node.replies:
        answer = min(node.replies, key=lambda reply: reply.rank)
        path.append(answer.said)
        node = next((question for question in answer.replies if question.replies), None)
        if node is None:
            break
        path.append(node.said)
    return path


def _questions(root: _Node | None) -> Iterator[tuple[tuple[Message, ...], _Node]]:
    """Each question, after the messages that lead to it and it itself, parents first."""
    waiting: list[tuple[tuple[Message, ...], _Node]] = [((), root)] if root else []
    while waiting:
        before, node = waiting.pop()
        path = (*before, node.said)
        if node.said["role"] == "user":
            yield path, node
        waiting.extend((path, reply) for reply in reversed(node.replies))
