"""Benchmark tasks as data: one small TOML file per task, read strictly.

`tasks/` holds those of the Llama 2 paper; your own file works the same way. The dataclasses below
document the fields. Where a key takes "a path", it names a field of a row (`choices.text`); where
it takes a template, see `templates`.
"""

import difflib
import hashlib
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from llama_jax.config import InputError, require
from llama_jax.evals import templates
from llama_jax.runtime.files import as_path, read_bytes, shown

FOLDER = Path(__file__).parent / "tasks"
MAX_BYTES = 1 << 20
METRICS: dict[str, tuple[str, ...]] = {
    "choice": ("acc", "acc_norm", "acc_bytes", "acc_token", "acc_pmi", "mc2"),
    "generate": ("exact_match", "refusal"),
    "code": ("pass@1", "pass@10", "pass@100"),
    "perplexity": ("token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"),
}
"""Metrics that each kind of task allows; `aggregate` says how they are averaged."""
Kind = Literal["choice", "generate", "code", "perplexity"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The location of rows: a file below the folder of data, or a Hugging Face data set."""

    file: str = ""
    """Below the folder of data; `*` for several, whose names become the field `_file` of a row."""
    rows: str = ""
    """Path of the list of rows inside each object of the file, if its objects are not the rows."""
    hf: str = ""
    """NAME, OWNER/NAME or OWNER/NAME/CONFIG, used if there is no such file."""
    split: str = "test"
    """Split of the Hugging Face data set."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark: its questions, their format, and its metrics."""

    name: str
    """The name of the file without its ending."""
    folder: str
    """Folder for the files of `source` if no other folder is named; empty for none."""
    title: str
    version: int
    """Increased whenever the same model can get another score."""
    kind: Kind
    metrics: tuple[str, ...]
    """The first is used for comparisons."""
    source: Source
    prompt: str
    """Template of a question, without the answer; the text itself for perplexity."""
    delimiter: str = " "
    """Text between a question and its answer."""
    preamble: str = ""
    """Template of the text before everything else."""
    preamble_file: str = ""
    """Template of the name of a file whose text comes before everything else, as for BBH's
    prompts."""
    preamble_after: str = ""
    """Text up to which, inclusive, the beginning of that file is left out."""
    stored_shots: int = 0
    """Number of examples in the preamble's file; only reported."""
    separator: str = "\n\n"
    """Text between the preamble's file, the examples and the question."""
    shots: int = 0
    """Number of examples before the question, taken from the beginning."""
    examples: Source | None = None
    """Source of the examples, if not `example` or the questions, which are then not asked about."""
    example: tuple[dict, ...] = ()
    """The rows of examples themselves."""
    same: str = ""
    """Path of a field in which an example must agree with the question, such as MMLU's subject."""
    target: str = ""
    """Template of an example's answer; without it, its right choice or first right answer."""
    group: str = ""
    """Path of a field by which results are also reported separately."""
    aggregate: Literal["mean", "mean_of_groups"] = "mean"
    chat: bool = False
    """Whether the question is sent as a user message, with the model's chat template."""

    choices: str | tuple[str, ...] = ()
    """Path of the list of choices, or a template of each."""
    labels: str | tuple[str, ...] = ()
    """Path of the choices' labels, or the labels, if the answer is one of them."""
    answer: str = ""
    """Path of the right choice: its number from 0, its label, or a list of 0 and 1."""
    contexts: tuple[str, ...] = ()
    """Template of a question for each choice, if the choice is part of the question
    (WinoGrande)."""
    filter: str = ""
    """Filter of the question and of each choice, see `templates.FILTERS`."""
    unconditional: str = "Answer:"
    """The context whose likelihoods `acc_pmi` subtracts."""

    answers: str = ""
    """Path of a right answer or a list of them, or a template of one."""
    until: tuple[str, ...] = ()
    """Stop texts of an answer."""
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    """Number of answers to each question."""
    extract: str = ""
    """Regular expression whose last match is the answer: its first group, if it has one."""
    normalise: Literal["exact", "answer", "number"] = "exact"
    """Normalisation of answers before they are compared, see `normalise.NORMALISE`."""
    program: str = ""
    """Template of the program that passes if an answer, its field `completion`, is right: if it
    runs to its last line, so not one that calls exit() or unittest.main()."""
    seconds: float = 5.0
    """Time limit of a program."""

    stride: int = 0
    """Tokens by which the window advances over a text longer than the context; 0 for as many as
    fit. A smaller number gives later tokens more context, at a higher cost."""
    digest: str = field(default="", compare=False)
    """SHA-256 of the file."""

    def __post_init__(self):
        where = f"task {self.name}"
        known = METRICS[self.kind]
        for metric in self.metrics:
            require(
                metric in known,
                f"{where}: metric {shown(metric)} is none of kind {self.kind}; known are "
                f"{', '.join(known)}",
            )
        require(self.metrics, f"{where}: metrics names none of {', '.join(known)}")
        for name in _TEMPLATES:
            value = getattr(self, name)
            for template in (value,) if isinstance(value, str) else value:
                templates.check(template, f"{where}: {name}")
        for name, low in (
            ("shots", 0), ("max_new_tokens", 1), ("samples", 1), ("stride", 0), ("version", 1)
        ):  # fmt: skip
            value = getattr(self, name)
            require(value >= low, f"{where}: {name}={value} must be at least {low}")
        require(all(self.until), f"{where}: until holds an empty text, which would end all answers")
        try:
            re.compile(self.extract)
        except re.error as error:
            raise InputError(f"{where}: extract is not a regular expression: {error}") from error
        for name in _NEEDED[self.kind]:
            require(getattr(self, name), f"{where}: kind {self.kind} needs the key {name}")
        require(
            not self.filter or self.filter in templates.FILTERS,
            f"{where}: filter {shown(self.filter)} is unknown; known are "
            f"{', '.join(templates.FILTERS)}",
        )
        for source in (self.source, self.examples):
            require(
                source is None or source.file or source.hf,
                f"{where}: a source needs file or hf",
            )
        require(
            self.aggregate == "mean" or self.group,
            f"{where}: aggregate mean_of_groups needs the key group",
        )
        require(
            self.kind != "code" or max(map(_k, self.metrics)) <= self.samples,
            f"{where}: samples={self.samples} answers are too few for {', '.join(self.metrics)}",
        )


_TEMPLATES = ("prompt", "preamble", "preamble_file", "target", "contexts", "program")
_NEEDED = {
    "choice": ("choices", "answer"),
    "generate": (),
    "code": ("program",),
    "perplexity": (),
}


def _k(metric: str) -> int:
    return int(metric.partition("@")[2] or 1)


def shipped() -> list[str]:
    """The names of the tasks that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(spec: str) -> list[Task]:
    """The tasks of a list such as `arc_easy,mine.toml`: names of shipped tasks, and files.

    Raises InputError for a name that is neither, with the nearest one, and as `read`.
    """
    names = [name.strip() for name in spec.split(",") if name.strip()]
    require(names, "--tasks names no task; ours are " + ", ".join(shipped()))
    tasks = [_find(name) for name in names]
    twice = sorted({task.name for task in tasks if [t.name for t in tasks].count(task.name) > 1})
    require(not twice, f"--tasks names {', '.join(twice)} twice")
    return tasks


def _find(name: str) -> Task:
    if name.endswith(".toml") or "/" in name:
        return read(name, folder=str(as_path(name).parent))
    file = FOLDER / f"{name}.toml"
    if not file.exists():
        near = difflib.get_close_matches(name, shipped(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"ours are {', '.join(shipped())}."
        raise InputError(
            f"task {shown(name)} is unknown; {hint} A file of your own ends in .toml; the tasks of "
            "lm-evaluation-harness run through llama_jax.evals.harness"
        )
    return read(file, folder="")


def read(path: Any, folder: str) -> Task:
    """A task from its file. InputError names the key that is unknown, missing or of another type.

    folder: location of its data if no other folder is named.
    """
    content = read_bytes(path, "task", MAX_BYTES)
    where = f"task {path}"
    try:
        values = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid TOML: {error!s:.120}") from error
    given = {
        "name": as_path(path).name.removesuffix(".toml"),
        "folder": folder,
        "digest": hashlib.sha256(content).hexdigest(),
    }
    for name in given:
        require(name not in values, f"{where}: the key {name} is unknown: it follows from the file")
    return _build(Task, values | given, where)


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(cls)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"{where}: the key {shown(name)} is unknown; {hint}")
    for name, f in known.items():
        needed = f.default is MISSING and f.default_factory is MISSING
        require(name in values or not needed, f"{where} lacks the key {name}")
    hints = typing.get_type_hints(cls)
    return cls(**{k: _value(hints[k], v, f"{where}: {k}") for k, v in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """One value as the type of its field; InputError if it is of another."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        near = difflib.get_close_matches(str(value), args, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use {' or '.join(args)}"
        raise InputError(f"{where} is {shown(value)}; {hint}")
    if origin in (types.UnionType, typing.Union):
        kinds = {str: str, list: tuple, dict: Source}
        wanted = kinds.get(type(value))
        hint = next((a for a in args if (typing.get_origin(a) or a) is wanted), args[0])
        return _value(hint, value, where)
    if hint is Source:
        require(isinstance(value, dict), f"{where} must be a table, not {shown(value)}")
        return _build(Source, value, where)
    if origin is tuple:
        require(isinstance(value, list), f"{where} must be a list, not {shown(value)}")
        return tuple(_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    require(type(value) is hint, f"{where} is {shown(value)}, not of type {hint.__name__}")
    return value
