"""Predictions beside published runs: a prediction is a bound, and the README says how loose."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_published_runs_stay_below_the_bound_as_the_readme_says():
    table = runpy.run_path(str(ROOT / "experiments" / "plan_published.py"))
    shares = [run.mfu / table["predict"](run)[1] for run in table["RUNS"]]
    assert max(shares) < 1
    words = " ".join((ROOT / "README.md").read_text().split())
    said = re.search(r"reached (\d+) to (\d+) % of the predicted MFU", words)
    assert said
    assert [int(n) for n in said.groups()] == [round(100 * min(shares)), round(100 * max(shares))]
