"""Experiment files: finds the shipped ones by name, loads any of them, applies overrides.

An experiment is a Python file with `CONFIG = TrainConfig(...)`. The shell names one by its path, or
by its name where it comes with the project: `quickstart`, `chat/sft`, `tpu/llama2_7b`.
"""

import ast
import contextlib
import difflib
import io
import os
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llama_jax.config import InputError, TrainConfig, require

FOLDER = "experiments"
TEMPLATE = "template"
"""The shipped experiment that `llama-jax new` copies."""
_SETTINGS = re.compile(r"^CONFIG\b", re.MULTILINE)
_FIELD = re.compile(r"^(Command|Hardware|Expected|Predicted) +(.*(?:\n {10}.*)*)", re.MULTILINE)


class Shipped(NamedTuple):
    """An experiment that comes with the project, as its docstring describes it."""

    name: str
    path: Path
    command: str
    """The command of llama-jax that runs it: train, sft, ..."""
    promise: str
    hardware: str
    result: str
    """Expected result of a run, measured or predicted; empty if unknown."""


def project() -> Path:
    """The folder that contains `experiments`: the checkout, or the installed package."""
    package = Path(__file__).parent
    inside = package / "_project"
    return inside if (inside / FOLDER).is_dir() else package.parent


def shipped_files() -> dict[str, Path]:
    """The experiments that come with the project, by name."""
    root = project() / FOLDER
    files = (path for path in sorted(root.rglob("*.py")) if _SETTINGS.search(path.read_text()))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def shipped() -> list[Shipped]:
    """The descriptions of the project's experiments from their docstrings, sorted by name."""
    return [_described(name, path) for name, path in shipped_files().items()]


def _described(name: str, path: Path) -> Shipped:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    said = {key: " ".join(value.split()) for key, value in _FIELD.findall(text)}
    command = re.match(r"llama-jax (\S+)", said.get("Command", ""))
    return Shipped(
        name,
        path,
        command[1] if command else TrainConfig.stage,
        " ".join(text.partition("\n\n")[0].split()),
        said.get("Hardware", ""),
        said.get("Expected", said.get("Predicted", "")),
    )


def find(named: str) -> str:
    """The file of an experiment: an existing file, or else the project's experiment of that name.

    The project's are also found by the path that they have in a checkout: experiments/chat/sft.py.

    Raises InputError, with the nearest name, if there is neither.
    """
    if Path(named).is_file():
        return named
    files = shipped_files()
    name = named.removeprefix(f"{FOLDER}/").removesuffix(".py")
    if name in files:
        return os.fspath(files[name])
    require(not Path(named).exists(), f"experiment {named} is not a file: give one such as run.py")
    near = difflib.get_close_matches(name, files, n=1)
    hint = f"did you mean {near[0]}?" if near else "llama-jax experiments lists those it comes with"
    raise InputError(f"experiment {named} does not exist; {hint}")


def load_experiment[C: TrainConfig](
    argv: Sequence[str], prog: str = "llama-jax train", kind: type[C] = TrainConfig
) -> C:
    """Read `EXPERIMENT [--steps 20 --model.remat full ...]`, which defines a `kind` of experiment.

    `--help` prints every setting with its value in this experiment and exits.

    Raises:
      InputError: the file is missing, does not run or holds no TrainConfig; an override is unknown
        (the nearest name is given), ill-typed or impossible.
    """
    require(argv, f"{prog} needs an experiment file, or a name from llama-jax experiments")
    named, *overrides = argv
    if named in ("-h", "--help"):
        print(
            f"usage: {prog} EXPERIMENT [--option value ...]\n\n"
            f"EXPERIMENT is a Python file that defines CONFIG = {kind.__name__}(...), or the name "
            "of one that\ncomes with the project (llama-jax experiments lists them).\n"
            f"{prog} EXPERIMENT --help lists every option with its value there."
        )
        raise SystemExit(0)
    require(
        not named.startswith("-"),
        f"{prog} needs the experiment file first, then its options; got {named}",
    )
    path = find(named)
    before = list(sys.path)
    sys.path[:] = [os.getcwd(), *before, *_experiment_paths(path)]
    try:
        config = runpy.run_path(path).get("CONFIG")
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(f"experiment {named} does not run: {error}") from error
    except Exception as error:
        raise InputError(f"experiment {named} does not run: {error!r}") from error
    finally:
        sys.path[:] = before
    if type(config) is not kind:
        found = f"CONFIG is a {type(config).__name__}" if config is not None else "it has no CONFIG"
        own = f"; run it with llama-jax {config.stage}" if isinstance(config, TrainConfig) else ""
        raise InputError(f"experiment {named} needs CONFIG = {kind.__name__}(...): {found}{own}")
    return override(config, overrides, f"{prog} {named}")


def _experiment_paths(path: str) -> list[str]:
    """Where `from experiments import PARENT` finds it too: beside the file or above it, or with the
    project."""
    own = Path(path).absolute().parent
    return [str(folder) for folder in (own, own.parent, project())]


def override[C: TrainConfig](config: C, options: Sequence[str], prog: str) -> C:
    """`config` with the overrides `--steps 20 --model.remat full ...`; `--help` exits.

    Raises InputError for an option that is unknown (the nearest is given), ill-typed or impossible.
    """
    import tyro  # 0.2 s that only a command line needs to spend

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(config),
                prog=prog,
                default=config,
                args=list(options),
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError(_one_line(said.getvalue(), prog)) from None


def _one_line(box: str, command: str) -> str:
    """What tyro says in a box of many lines, as one: the reason, the nearest option, the help."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()[1:]]
    lines = ["" if set(line) == {"-"} else line for line in lines]  # a rule where all is ASCII
    lines = lines[1:] if lines and not lines[0] else lines
    reason = " ".join(lines[: lines.index("")]) if "" in lines else " ".join(lines)
    reason = re.sub(r"^Error parsing [\w.]+: ", "", reason)  # our messages name the setting
    if "Perhaps you meant:" in lines:
        given = re.search(r"--[\w.-]+", reason)
        offered = [line.split()[0] for line in lines if re.match(r"--[\w.-]+ ", line)]
        nearest = difflib.get_close_matches(given[0] if given else "", offered, n=1, cutoff=0)[0]
        reason += f"; did you mean {nearest}?"
    return f"{reason} (all options: {command} --help)"
