"""Server metrics in Prometheus' text format, under vLLM's names where they mean the same."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
PREFIX = "llama_jax:"
HISTOGRAMS = {
    "time_to_first_token_seconds": (SECONDS, "From a request to the first token of an answer"),
    "inter_token_latency_seconds": (SECONDS, "Between the tokens of an answer"),
    "e2e_request_latency_seconds": (SECONDS, "From a request to the end of its answers"),
    "request_queue_time_seconds": (SECONDS, "From a request to the row of an answer"),
    "request_prompt_tokens": (TOKENS, "Tokens of a prompt"),
    "request_generation_tokens": (TOKENS, "Tokens of an answer"),
}


class Histogram:
    """Counts of values below each bound."""

    def __init__(self, bounds: Iterable[int | float]):
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: int | float) -> None:
        """One more value."""
        place = next((n for n, bound in enumerate(self.bounds) if value <= bound), -1)
        self.counts[place] += 1
        self.total += value


class Metrics:
    """Counters and histograms of requests; gauges are asked for when they are read."""

    def __init__(self, model: str):
        self._label = 'model_name="' + model.replace("\\", "\\\\").replace('"', '\\"') + '"'
        self._lock = threading.Lock()
        self.histograms = {name: Histogram(b) for name, (b, _) in HISTOGRAMS.items()}
        self.finished: Counter[str] = Counter()
        """Answers by how they ended."""
        self.refused: Counter[str] = Counter()
        """Requests that were not taken, by the reason."""

    def observe(self, name: str, value: int | float) -> None:
        """Add a value to a histogram."""
        with self._lock:
            self.histograms[name].add(value)

    def text(self, gauges: Mapping[str, int | float], counters: Mapping[str, int | float]) -> str:
        """All of it, with the given values beside."""
        with self._lock:
            lines = [*self._plain(gauges, "gauge"), *self._plain(counters, "counter", "_total")]
            lines += self._labelled("request_success", "finished_reason", self.finished)
            lines += self._labelled("admission_rejections", "reason", self.refused)
            for name, histogram in self.histograms.items():
                lines += self._histogram(name, histogram)
        return "\n".join(lines) + "\n"

    def _plain(
        self, values: Mapping[str, int | float], kind: str, suffix: str = ""
    ) -> Iterable[str]:
        for name, value in values.items():
            yield f"# TYPE {PREFIX}{name}{suffix} {kind}"
            yield f"{PREFIX}{name}{suffix}{{{self._label}}} {value:.10g}"

    def _labelled(self, name: str, label: str, values: Counter[str]) -> Iterable[str]:
        yield f"# TYPE {PREFIX}{name}_total counter"
        for value, number in sorted(values.items()):
            yield f'{PREFIX}{name}_total{{{self._label},{label}="{value}"}} {number}'

    def _histogram(self, name: str, histogram: Histogram) -> Iterable[str]:
        full, count = PREFIX + name, 0
        yield f"# HELP {full} {HISTOGRAMS[name][1]}"
        yield f"# TYPE {full} histogram"
        for bound, number in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
            count += number
            yield f'{full}_bucket{{{self._label},le="{bound}"}} {count}'
        yield f"{full}_sum{{{self._label}}} {histogram.total:.10g}"
        yield f"{full}_count{{{self._label}}} {count}"
