"""Judged answers and the page that shows them: numbers, escaping, no foreign host."""

import html
import re
from dataclasses import dataclass

import numpy as np
import pytest

from llama_jax.align.answering import Answered
from llama_jax.align.scoring import RewardModel
from llama_jax.config import InputError
from llama_jax.data.corpora.tales import instructions
from llama_jax.data.corpora.tales.judge import judge
from llama_jax.data.records import Preference
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.evals.calibration import Bin, calibration, pair_gaps, rated_accuracy
from llama_jax.evals.charts import Bar, _ticks, bars, heat, lines
from llama_jax.evals.chat_report import page
from llama_jax.evals.judged import judge_answers
from llama_jax.evals.page import commands, document, shares


@dataclass(frozen=True)
class Parrot:
    """Answers every conversation with one text."""

    text: str

    def answer(self, conversations, seeds):
        return [Answered(self.text, (), True)] * len(conversations)


PROMPTS = [
    *(instructions.prompt(i, "validation", kind="story") for i in range(6)),
    *(instructions.adversarial(i, "validation") for i in range(4)),
]


def test_violations_are_unkind_requests_that_were_not_refused():
    story = "Once there was a girl named Mia. She was happy."
    found = judge_answers(Parrot(story).answer, PROMPTS)
    assert (found.violations, found.false_refusals, found.harmless) == (4, 0, 6)
    expected = [judge(p.messages, story, True).helpfulness for p in PROMPTS]
    np.testing.assert_array_equal(found.helpfulness, expected)
    row = found.summary("parrot")
    assert row["helpfulness"] == pytest.approx(np.mean(expected))
    assert (row["violations"], row["prompts"]) == (1.0, 10)
    assert row["helpfulness_interval"][0] < row["helpfulness"] < row["helpfulness_interval"][1]


def test_a_refusal_of_what_is_harmless_is_counted():
    refusal = "I am sorry, but I will not do that. It is not kind. Shall we sing a song instead?"
    found = judge_answers(Parrot(refusal).answer, PROMPTS)
    assert found.false_refusals == 6
    assert found.violations == sum(
        not judge(p.messages, refusal, True).refused for p in PROMPTS[6:]
    )
    assert found.summary("no")["false_refusals"] == 1.0


def test_bars_are_as_high_as_their_values():
    picture = bars([Bar("a", 0.25, 0.2, 0.3), Bar("b<", 1.0, 0.9, 1.0)], "share")
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', picture)]
    assert heights[1] == pytest.approx(4 * heights[0], abs=0.3)
    assert "b&lt;" in picture
    assert "b<" not in picture.replace("b&lt;", "")


def test_a_line_goes_through_its_points_in_proportion():
    picture = lines({"score": [(0.0, 0.0), (1.0, 1.0), (4.0, 2.0)]}, "n", "score")
    points = re.search(r'points="([^"]+)"', picture)[1].split()
    (x0, y0), (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in points)
    assert x2 - x0 == pytest.approx(4 * (x1 - x0), abs=0.3)
    assert y0 - y2 == pytest.approx(2 * (y0 - y1), abs=0.3)
    assert lines({}, "n", "score") == ""
    marked = re.findall(r'text-anchor="middle">(\d+)<', picture)
    assert marked == ["0", "1", "2", "3", "4"]
    assert ">7</text>" in lines({"one": [(7.0, 1.0)]}, "n", "score")


def test_no_line_runs_through_the_names_of_the_lines():
    names = ["ppo, its judges", "ppo, held-out judge", "grpo, its judges", "<grpo>"]
    picture = lines({name: [(0.0, 0.0), (1.0, 1.0)] for name in names}, "n", "score")
    placed = re.findall(r'<text x="(\d+)" y="(-?\d+)" fill="(#\w+)">([^<]+)<', picture)
    assert [html.unescape(name) for *_, name in placed] == names
    assert len({color for _, _, color, _ in placed}) == 4
    assert all(int(y) < 0 for _, y, *_ in placed)
    top, height = map(int, re.search(r'viewBox="0 (-\d+) \d+ (\d+)"', picture).groups())
    assert all(int(y) - 12 >= top for _, y, *_ in placed)
    assert height + top == 260
    ends = {}
    for x, y, _, name in placed:
        assert int(x) >= ends.get(y, 0)
        ends[y] = int(x) + 6 * len(html.unescape(name))
    assert len(ends) == 2
    assert max(ends.values()) <= 460


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.219, 2.58), (-3.0, 4000.0), (1.0, 1.001)])
def test_ticks_are_a_few_round_numbers_inside_the_axis(low, high):
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert low - 1e-9 <= ticks[0] <= ticks[-1] <= high + 1e-9
    step = (ticks[1] - ticks[0]) / 10 ** np.floor(np.log10(ticks[1] - ticks[0]) + 1e-9)
    assert min(abs(step - round_step) for round_step in (1, 2, 5, 10)) < 1e-6
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)


def test_squares_are_as_strong_as_their_weights():
    picture = heat(np.array([[1.0, 0.0], [0.25, 0.75]]), ["<s>", "a"])
    squares = re.findall(r'fill-opacity="([\d.]+)"><title>([^<]+)<', picture)
    assert squares == [
        ("1.000", "&lt;s&gt; takes 100% from &lt;s&gt;"),
        ("0.287", "a takes 25% from &lt;s&gt;"),
        ("0.762", "a takes 75% from a"),
    ]


def test_a_share_is_a_bar_of_its_length():
    assert "width:12.5%" in shares([("<b>", 0.125)])
    assert "<b>" not in shares([("<b>", 0.125)])


def test_all_of_a_page_is_its_main_part_and_commands_stand_in_a_table_of_their_own():
    page = document("a < b", [commands([('llama-jax generate run --prompt "<s>"', "a & b")])])
    assert page.endswith("</main>\n")
    main = page.partition("<main>")[2]
    assert main.startswith("<h1>a &lt; b</h1>")
    row = "<td><code>llama-jax generate run --prompt &quot;&lt;s&gt;&quot;</code></td><td>a &amp; b"
    assert f"<table class=commands><tr>{row}</td></tr></table>" in main


def test_the_page_stands_alone_and_escapes_what_models_say():
    row = judge_answers(Parrot("Hello.").answer, PROMPTS).summary("base")
    found = {"n": [1.0, 8.0], "max": [0.1, 0.9], "median": [0.1, 0.1]}
    metrics = [
        {"step": s, "kl/answer": 0.1 * s, "score/mean": s, "heldout/proxy": s, "heldout/score": s}
        for s in (1.0, 2.0)
    ]
    text = page(
        {
            "stages": [row, {**row, "name": "sft", "origin": "base", "p_value": 0.0001}],
            "reward_accuracy": {
                "safety": dict.fromkeys(("significantly", "better", "slightly", "negligibly"), 0.5)
            },
            "gatt": {"with": {"2": 1.0, "20": 0.96}, "without": {"2": 0.4, "20": 0.0}},
            "hero_kept": 0.97,
            "seconds": 120.0,
        },
        {
            "best_of_n": {"round 1": found},
            "calibration": {"safety": [Bin(0.6, 0.7, 10), Bin(0.9, 0.8, 10)]},
            "policies": {"ppo": metrics, "grpo": metrics},
            "answers": [{"prompt": "<b>Hi</b>", "answers": {"base": "<script>alert(1)</script>"}}],
        },
        ["llama-jax chat runs/chat/gatt"],
    )
    assert "<script" not in text
    assert "&lt;b&gt;Hi&lt;/b&gt;" in text
    assert not re.search(r"(src|href)=|https?://", text)
    assert text.count("<figure>") == 7
    assert "0.960" in text
    values = [row["helpfulness"], "{:.3f} to {:.3f}".format(*row["helpfulness_interval"]), 1.0, 0.0]
    cells = ["sft", "base", *values, "&lt; 0.001"]
    shown = [
        f"<td class=number>{c:.3f}</td>" if isinstance(c, float) else f"<td>{c}</td>" for c in cells
    ]
    assert f"<tr>{''.join(shown)}</tr>" in text
    assert "grpo, held-out judge" in text
    assert "97 of 100 stories" in text
    assert "&lt; 0.001" in text


def test_a_model_whose_certainty_is_right_is_calibrated():
    rng = np.random.default_rng(0)
    certainty = rng.uniform(0.5, 1, 40_000)
    right = rng.random(40_000) < certainty
    gaps = np.log(certainty / (1 - certainty)) * np.where(right, 1, -1)
    bins = calibration(gaps, bins=10)
    assert [b.pairs for b in bins] == [4000] * 10
    assert [b.predicted for b in bins] == sorted(b.predicted for b in bins)
    for b in bins:
        assert b.observed == pytest.approx(b.predicted, abs=0.03)
    assert bins[-1].predicted > 0.96


def pair(rating, chosen="a b"):
    asked = ({"role": "user", "content": "a"},)
    return Preference(messages=asked, chosen=chosen, rejected="b", rating=rating)


def test_accuracy_by_rating_by_hand():
    pairs = [pair(r) for r in (3, 3, 3, 3, 2, 2, 1, 1)]
    gaps = np.array([1.0, 0.5, -1.0, np.nan, 0.0, 2.0, -1.0, -2.0])
    shares = rated_accuracy(pairs, gaps)
    assert [*shares] == ["significantly", "better", "slightly", "negligibly"]
    assert [*shares.values()][:3] == [2 / 3, 0.5, 0.0]
    assert np.isnan(shares["negligibly"])


def test_a_pair_that_does_not_fit_has_no_gap():
    class Length(RewardModel):
        """Scores a row by its tokens."""

        def __init__(self):
            pass

        def scores(self, rows):
            return np.asarray(rows["segment_ids"]).sum(axis=1).astype(np.float32)

    tokenizer = train_tokenizer(["a b [INST] [/INST]"] * 40, 275)
    pairs = [pair(3), pair(2, "a b " * 40), pair(1, "b")]
    gaps = pair_gaps(Length(), tokenizer, pairs, seq_len=48)
    assert gaps[0] > 0
    assert np.isnan(gaps[1])
    assert gaps[2] == 0


def test_bins_of_a_few_pairs_by_hand():
    low, high = calibration(np.array([3.0, 0.0, -1.0, 2.0]), bins=2)
    assert low == pytest.approx(((0.5 + 1 / (1 + np.exp(-1.0))) / 2, 0.25, 2))
    assert high == pytest.approx(((1 / (1 + np.exp(-2.0)) + 1 / (1 + np.exp(-3.0))) / 2, 1.0, 2))
    with pytest.raises(InputError, match="1 pairs are too few for 2 bins"):
        calibration(np.array([1.0]), bins=2)
