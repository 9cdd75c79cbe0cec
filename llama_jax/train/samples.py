"""Sample texts written at evaluations: RUN/samples/step-NNNNNNNN.txt."""

from collections.abc import Sequence

from etils import epath

_BETWEEN = "\n\n---\n\n"


def write_samples(workdir: epath.Path, step: int, texts: Sequence[str]) -> None:
    """Store the texts of one step."""
    folder = workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"step-{step:08d}.txt").write_text(_BETWEEN.join(texts) + "\n")


def read_samples(workdir: epath.Path) -> dict[int, list[str]]:
    """The texts of each step, in order of the steps."""
    files = sorted((workdir / "samples").glob("step-*.txt"))
    return {int(f.stem.removeprefix("step-")): f.read_text()[:-1].split(_BETWEEN) for f in files}
