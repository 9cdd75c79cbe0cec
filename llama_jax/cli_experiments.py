"""`llama-jax experiments` and `llama-jax new`: list the shipped experiments, write one to edit."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_jax.config import require
from llama_jax.experiment import TEMPLATE, Shipped, find, shipped, shipped_files
from llama_jax.runtime.files import write_atomic
from llama_jax.runtime.places import expand, naming

NEW_FILE = "experiment.py"
IGNORED = "# What git leaves out: runs are large, and made anew by their command.\nruns/\n"


def add_commands(command: Callable[..., Any]) -> None:
    """Declare both commands; `command(name, run, help)` makes a parser."""
    sub = command("experiments", _experiments, "list the experiments that come with the project")
    sub.add_argument("name", nargs="?", metavar="NAME", help="print the file of this one instead")
    sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    sub = command("new", _new, "write an experiment file to start from")
    sub.add_argument("folder", metavar="FOLDER", help=f"{NEW_FILE} goes here")


def _experiments(args: argparse.Namespace) -> None:
    if args.name is not None:
        print(Path(find(args.name)).read_text(), end="")
        return
    found = shipped()
    if args.json:
        print(json.dumps({"experiments": [e._asdict() | {"path": str(e.path)} for e in found]}))
        return
    print("\n\n".join(map(_entry, found)))
    print("\nllama-jax experiments NAME prints the file of one.")


def _entry(e: Shipped) -> str:
    lines = [f"llama-jax {e.command} {e.name}", f"  {e.promise}", f"  hardware: {e.hardware}"]
    return "\n".join([*lines, f"  expected: {e.result}"] if e.result else lines)


def _new(args: argparse.Namespace) -> None:
    path = new(args.folder)
    print(f"wrote {path}: read it, change what you like, then")
    print(f"  llama-jax train {path} --workdir {path.parent / 'runs' / 'first'}")


def new(folder: str) -> Path:
    """Write FOLDER/experiment.py and FOLDER/.gitignore; returns the path of the first.

    Raises InputError if the folder has an experiment already: nothing is ever overwritten.
    """
    target = Path(expand(folder))
    path = target / NEW_FILE
    require("://" not in folder, f"{folder}: an experiment is a file on this machine")
    require(not target.exists() or target.is_dir(), f"{folder} is a file: name another folder")
    require(not path.exists(), f"{path} exists already: name another folder")
    with naming(target):
        ignored = target / ".gitignore"
        if not ignored.exists():
            write_atomic(ignored, IGNORED.encode())
        write_atomic(path, shipped_files()[TEMPLATE].read_bytes())
    return path
