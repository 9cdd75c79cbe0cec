"""Error messages for paths that hold no supported model: what lies there, and the way out."""

import zipfile
from pathlib import Path

from llama_jax.config import InputError
from llama_jax.convert import hf_files, native
from llama_jax.runtime.files import open_file, read_json, shown

_FILES = {".gguf", ".bin"}
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".zst", ".xz", ".7z")


def reason(path: Path) -> str:
    """One line on what the path is and what to do; empty if unknown."""
    return _folder(path) if path.is_dir() else _file(path)


def _folder(path: Path) -> str:
    if (path / hf_files.ADAPTER_CONFIG).exists():
        return hf_files.adapter(path)
    if (path / "config.json").exists():
        try:
            values = read_json(path / "config.json")
        except InputError as error:
            return str(error)
        return (
            f"{path}/config.json names no model_type and is none of ours ({shown(sorted(values))})"
        )
    if (path / "params.json").exists():
        return f"{path} has params.json and no consolidated.*.pth: download the weights as well"
    models = sorted(f.name for f in path.iterdir() if f.suffix in _FILES and f.is_file())
    models = [name for name in models if name != "tokenizer.bin"]
    if models:
        return f"{path} is a folder with {', '.join(models[:4])}: name the file itself"
    if any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin")):
        return f"{path} has weights and no config.json: download all files of the model"
    if any(path.glob("consolidated.*.pth")):
        return f"{path} has weights and no params.json: download all files of the model"
    return _runs(path)


def _is_run(folder: Path) -> bool:
    try:
        return native.is_format(folder) or (folder / "round_1").is_dir()
    except OSError:  # a folder that only its owner may read
        return False


def _runs(path: Path) -> str:
    """A folder of runs, as `make chat` writes one."""
    found = [folder for folder in path.iterdir() if _is_run(folder)]
    if not found:
        return ""
    names = [run.name for run in sorted(found)]
    newest = max(found, key=lambda run: run.stat().st_mtime)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (
        f"{path} is not a model but a folder with {', '.join(names[:12])}{more}: name one of them, "
        f"such as {newest}"
    )


def _file(path: Path) -> str:
    try:
        with open_file(path) as file:
            begin = file.read(16)
    except (InputError, OSError) as error:
        return str(error)
    if not begin:
        return f"{path} is empty: download it again"
    if path.suffix == ".safetensors":
        return f"{path} is one file of a model: name the folder, with its config.json"
    if path.name in ("config.json", "params.json", "tokenizer.model", hf_files.INDEX):
        return f"{path} is one file of a model: name its folder"
    if path.suffix in (".pth", ".pt", ".ckpt", ".bin") and _is_pickle(begin):
        return (
            f"{path} is a pickle of torch: of Meta's models name the folder, with its params.json; "
            "save others with safe serialization, which gives *.safetensors"
        )
    if path.name.endswith(_ARCHIVES) or zipfile.is_zipfile(path):
        return f"{path} is an archive: unpack it, and name the folder or file inside"
    return ""


def _is_pickle(begin: bytes) -> bool:
    return begin[:4] == b"PK\x03\x04" or begin[:1] == b"\x80"
