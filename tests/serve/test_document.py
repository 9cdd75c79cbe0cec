"""`/openapi.json` promises what the server does: schemathesis asks whatever it may, and more.

API_CASES=20000 asks so many times; API_SEED makes other requests.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_jax.serve.openapi import document
from llama_jax.serve.settings import Settings
from tests.serve.server import KEYS, keys_in, running, wait_until

CASES = int(os.environ.get("API_CASES", "2000"))
SEED = os.environ.get("API_SEED") or "1"
"""The same requests in every run of the tests."""
LONGEST = "120"
"""Seconds of an answer: what takes longer hangs."""
BODIES = 4
"""Routes that take a body: nearly all requests go to these."""


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_whatever_the_document_allows_is_answered_and_the_rest_is_refused(
    engine, served, tmp_path, caplog
):
    """No failure and no hang, on any route, for data that keeps to the document or does not; each
    refusal is OpenAI's error object, and the server is as it was afterwards."""
    pytest.importorskip("schemathesis")
    report = tmp_path / "report.json"
    compiled = engine.compiled.count
    with running(engine, served, keys=keys_in(tmp_path)) as server:
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run",
             f"http://127.0.0.1:{server.port}/openapi.json",
             "--header", f"Authorization: Bearer {KEYS['first']}", "--checks", "all",
             "--exclude-checks", "positive_data_acceptance",
             "--request-timeout", LONGEST, "--max-response-time", LONGEST,
             "--max-examples", str(max(CASES // BODIES, 1)), "--seed", SEED,
             "--generation-database", "none", "--suppress-health-check", "all",
             "--continue-on-failure", "--output-sanitize", "false", "--no-color",
             "--report", "json", "--report-json-path", str(report)],
            cwd=tmp_path,
            env=os.environ | {
                "SCHEMATHESIS_HOOKS": "tests.serve.api_checks",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"seed {SEED}: {done.stdout[-8000:]}{done.stderr[-2000:]}"
        assert server.ask("GET", "/health")[0] == 200
        wait_until(lambda: engine.idle and not server.service.open)
    said = json.loads(report.read_text())
    # All but the document's own.
    assert said["operations"]["tested"] == len(document(served, Settings(name="tiny"))["paths"]) - 1
    assert said["test_cases"]["generated"] >= CASES
    # Not only refusals: each route that takes a body answered a part of what it was asked.
    for route, rates in said["valid_rates"].items():
        assert sum(phase["accepted"] for phase in rates.values()) > 0, route
    assert engine.scheduler.pool.held == 0
    assert engine.waiting == 0
    assert engine.compiled.count == compiled
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
