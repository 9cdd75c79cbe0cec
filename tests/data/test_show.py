"""`data show`: what is printed is what is encoded, and nothing in a file steers the display."""

import json
import re
from html.parser import HTMLParser

import pytest

from llama_jax.cli import main
from llama_jax.config import InputError
from llama_jax.data.chat import encode_answer, encode_dialogue, encode_prompt
from llama_jax.data.records import Dialogue, Preference, Prompt, to_json
from llama_jax.data.show import page, show, terminal, wants_colour
from tests.data.test_chat import talk

TURNS = talk("Hi 日本", "Hello <b>!", "Who?", "An owl.", system="Be kind & <i>brief</i>.")
TURNS[2]["train"] = False
DIALOGUE = Dialogue(messages=tuple(TURNS), source="owls")
PAIR = Preference(
    messages=tuple(talk("Hi", "Yes?", "Who?")), chosen="An owl.", rejected="Go!", rating=3,
    margin=0.5, safe_chosen=True, safe_rejected=False,
)  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(*records):
        path = tmp_path / "records.jsonl"
        path.write_text("".join(to_json(record) + "\n" for record in records))
        return str(path)

    return write


class Text(HTMLParser):
    """The text of a page, and its tags with their attributes."""

    def __init__(self, source):
        super().__init__()
        self.text, self.tags, self.marked = "", [], {"trained": "", "rejected": ""}
        self._classes = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "span":
            self._classes.append(dict(attrs).get("class"))

    def handle_endtag(self, tag):
        if tag == "span":
            self._classes.pop()

    def handle_data(self, data):
        self.text += data
        if self._classes and self._classes[-1]:
            self.marked[self._classes[-1]] += data


def test_trained_text_stands_in_brackets_or_colours(write, tokenizer):
    path = write(DIALOGUE)
    body = (
        "<s>[INST] <<SYS>>\nBe kind & <i>brief</i>.\n<</SYS>>\n\nHi 日本 [/INST] Hello <b>! </s>"
        "<s>[INST] Who? [/INST]{+ An owl. </s>+}\n"
    )
    (plain,) = show(path)
    assert terminal(plain, False) == "1. owls\n" + body
    (counted,) = show(path, tokenizer=tokenizer)
    ids, trained = encode_dialogue(tokenizer, TURNS)
    heading = f"1. owls, {len(ids)} tokens, {sum(trained)} trained on"
    assert terminal(counted, False) == f"{heading}\n{body}"
    coloured = terminal(counted, True)
    assert coloured == (
        f"\x1b[1m{heading}\x1b[0m\n" + body.replace("{+", "\x1b[32m").replace("+}", "\x1b[0m")
    )
    assert [span.token for span in counted.spans] == ids
    assert [span.mark == "trained" for span in counted.spans] == trained


@pytest.mark.parametrize("counts", [False, True])
def test_both_answers_of_a_pair(write, tokenizer, counts):
    (shown,) = show(write(PAIR), tokenizer=tokenizer if counts else None)
    parts = [
        encode_prompt(tokenizer, PAIR.messages),
        encode_answer(tokenizer, PAIR.chosen),
        encode_answer(tokenizer, PAIR.rejected),
    ]
    tokens = "{} tokens, then {} chosen or {} rejected, ".format(*map(len, parts))
    assert terminal(shown, False) == (
        f"1. {tokens * counts}significantly better, margin 0.5, chosen answer safe, "
        "rejected answer unsafe\n"
        "<s>[INST] Hi [/INST] Yes? </s><s>[INST] Who? [/INST]{+ An owl. </s>+}\n[- Go! </s>-]\n"
    )
    if counts:
        assert [span.token for span in shown.spans] == [token for part in parts for token in part]


def test_a_page_is_whole_and_escaped(write, tokenizer):
    turns = talk("<script>alert('x')</script>", '"&amp;\x1b[31m')
    hostile = Dialogue(messages=tuple(turns), source="<u>")
    for counts in (False, True):
        shown = show(write(DIALOGUE, hostile), tokenizer=tokenizer if counts else None)
        parsed = Text(page("a<b", list(shown), shown.summary()))
        said = "<s>[INST] <script>alert('x')</script> [/INST]"
        assert said in parsed.text.replace("<s> ", "<s>")
        assert ' "&amp;\\x1b[31m </s>' in parsed.text
        assert parsed.marked["trained"] == (
            'Answers that are trained on, or chosen An owl. </s> "&amp;\\x1b[31m </s>'
        )
        assert "2 dialogues from 2 rows" in parsed.text
        names = {tag for tag, _ in parsed.tags}
        assert "script" not in names
        assert not {"b", "u"} & names
        assert not any({"src", "href"} & set(attributes) for _, attributes in parsed.tags)
        ids = [int(a["title"]) for tag, a in parsed.tags if "title" in a]
        expected = [*encode_dialogue(tokenizer, TURNS)[0]]
        assert ids[: len(expected)] == (expected if counts else [])


def test_pairs_on_a_page(write):
    shown = show(write(PAIR))
    parsed = Text(page("pairs", list(shown), shown.summary()))
    assert parsed.marked["trained"].endswith("chosen An owl. </s>")
    assert parsed.marked["rejected"] == "rejected answers Go! </s>"


def test_a_file_does_not_steer_the_terminal(write):
    hostile = Dialogue(messages=tuple(talk("\x1b]0;x\x07", "a\r\u202eb\tc\nd")), source="\x9bq")
    (shown,) = show(write(hostile))
    text = terminal(shown, False)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert r"[INST] \x1b]0;x\x07 [/INST]{+ a\r\u202eb" + "\tc\nd </s>+}" in text


def test_the_whole_file_is_counted(write, tokenizer):
    records = [Dialogue(messages=tuple(talk("Hi", "Oh " * n))) for n in (1, 5, 3)]
    shown = show(write(*records), limit=1, tokenizer=tokenizer)
    assert len(list(shown)) == 1
    pairs = [encode_dialogue(tokenizer, record.messages) for record in records]
    lengths = sorted(len(ids) for ids, _ in pairs)
    share = 100 * sum(sum(mask) for _, mask in pairs) / sum(lengths)
    report, tokens = shown.summary()
    assert report.endswith("3 dialogues from 3 rows of messages (TRL, OpenAI fine-tuning, our own)")
    assert tokens == (
        f"tokens of the first 3 records: median {lengths[1]}, longest {lengths[2]}; "
        f"{share:.1f} % in marked answers"
    )


def test_a_pair_is_as_long_as_its_longer_row(write, tokenizer):
    shown = show(write(PAIR), limit=0, tokenizer=tokenizer)
    assert list(shown) == []
    rows = [
        encode_prompt(tokenizer, PAIR.messages) + encode_answer(tokenizer, text)
        for text in (PAIR.chosen, PAIR.rejected)
    ]
    assert f"longest {max(map(len, rows))};" in shown.summary()[-1]


def test_the_richest_kind_that_the_rows_hold(write, tmp_path):
    prompt = Prompt(messages=tuple(talk("Hi")))
    for records, kind in (([PAIR], "preference"), ([prompt, DIALOGUE], "dialogue"),
                          ([prompt], "prompt")):  # fmt: skip
        shown = show(write(*records))
        assert shown.report.kind == kind
        assert len(list(shown)) == 1
    shown = show(write(DIALOGUE), kind="prompt")
    (one,) = shown
    assert terminal(one, False).endswith("Who? [/INST]\n")
    assert "{+" not in terminal(one, False)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"messages": talk("Hi", " ")}) + "\n")
    with pytest.raises(InputError, match=r"bad.jsonl, row 1.*assistant's answer is empty"):
        show(str(bad))


@pytest.mark.parametrize(
    ("environment", "terminal", "expected"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm"}, False, False),
    ],
)
def test_when_there_are_colours(monkeypatch, environment, terminal, expected):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wants_colour(terminal) is expected


def test_the_command(write, tokenizer, tmp_path, capsys):
    path = write(DIALOGUE, DIALOGUE)
    assert main(["data", "show", path, "--limit", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("1. owls\n<s>[INST]")
    assert "2. owls" not in out
    assert out.endswith("2 dialogues from 2 rows of messages (TRL, OpenAI fine-tuning, our own)\n")
    assert "--tokenizer PATH" in err
    tokenizer.save(tmp_path)
    target = tmp_path / "page.html"
    options = ["--tokenizer", str(tmp_path), "--html", str(target), "--format", "messages"]
    assert main(["data", "show", path, *options]) == 0
    out, err = capsys.readouterr()
    assert "tokens of the first 2 records: " in out
    assert out.endswith(f"2 of them in {target} (open it in a browser)\n")
    assert err == ""
    assert "Hello &lt;b&gt;!" in re.sub("</?span[^>]*>", "", target.read_text())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["nothing.jsonl"], "nothing.jsonl does not exist"),
        (["FILE", "--format", "alpac"], "format 'alpac' is unknown.*did you mean alpaca"),
        (["FILE", "--tokenizer", "nothing.model"], "tokenizer nothing.model does not exist"),
        (["FILE", "--limit", "-1"], "--limit -1 must not be negative"),
        (["FILE", "--kind", "preference"], "can be read as dialogue or prompt, not as preference"),
    ],
)
def test_the_command_with_bad_input(write, capsys, options, reason):
    path = write(DIALOGUE)
    assert main(["data", "show", *(path if o == "FILE" else o for o in options)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"llama-jax: error: .*{reason}.*\n", err)
