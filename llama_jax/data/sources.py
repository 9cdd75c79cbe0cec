"""Resolves `DataConfig.dataset` for text, into documents that workers read in parts.

It names `tales`, `tales:50000`, `short_tales`, `python_docs`, a file of JSON lines or text, a
folder of them (gs:// too), `tfds:NAME[/config]`, `hf:NAME[/config]`, or a mixture such as
`tales=0.7,my.jsonl=0.3`.
"""

import difflib
import hashlib
import importlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from llama_jax.config import InputError, require
from llama_jax.data import folders, scan_cache, textfiles
from llama_jax.data.corpora import tales
from llama_jax.data.corpora.tales import instructions
from llama_jax.data.split import VALIDATION_SHARE, in_validation
from llama_jax.runtime.files import AnyPath, as_path

TRAIN, VALIDATION = SPLITS = ("train", "validation")
EMBEDDED = ("tales", "short_tales", "python_docs")
_STORIES = 4096  # stories, or records of a data set, in a chunk


@runtime_checkable
class Source(Protocol):
    """A corpus that can be pickled, cut into chunks and read chunk by chunk."""

    @property
    def name(self) -> str:
        """Its name in messages and folders."""
        ...

    @property
    def identity(self) -> str:
        """Equal for equal documents in equal order; part of the fingerprint."""
        ...

    def chunks(self, split: str) -> Sequence[Any]:
        """Pieces of the split in order, whatever the number of processes."""
        ...

    def documents(self, split: str, chunk: Any) -> Iterator[str]:
        """The documents of a chunk that belong to the split."""
        ...


def resolve(
    spec: str, text_field: str = "text", cache_dir: str | None = None
) -> list[tuple[Source, float]]:
    """The sources that a data set specification names, with weights that sum to 1.

    Scans of files are cached in `cache_dir`, if given.

    Raises InputError for unknown names (with the nearest known one), bad weights, and files that
    are missing, empty, not text or have lines above 64 MiB.
    """
    return mix(spec, lambda name: _source(name, text_field, cache_dir))


def mix[S](spec: str, find: Callable[[str], S]) -> list[tuple[S, float]]:
    """The result of `find` for each name of a specification, with weights that sum to 1.

    Results have an `identity`. Raises InputError for bad weights and for data named twice.
    """
    spec = spec.strip()
    if "=" not in spec or as_path(spec).exists():
        return [(find(spec), 1.0)]
    found, weights = [], []
    for part in spec.split(","):
        name, equals, number = part.strip().rpartition("=")
        require(equals, f"data.dataset={spec!r}: {part!r} has no weight; write {part}=0.5")
        weights.append(_weight(spec, part, number))
        found.append(find(name.strip()))
    identities = [source.identity for source in found]
    require(
        len(set(identities)) == len(identities),
        f"data.dataset={spec!r} names the same data twice; add their weights up",
    )
    return [(s, w / sum(weights)) for s, w in zip(found, weights, strict=True)]


def _weight(spec: str, part: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    require(
        0 < weight < math.inf,
        f"data.dataset={spec!r}: weight in {part!r} must be a positive number",
    )
    return weight


def _source(name: str, text_field: str, cache_dir: str | None) -> Source:
    kind, _, rest = name.partition(":")
    if kind in ("tales", "short_tales"):
        source = Tales if kind == "tales" else ShortTales
        return source(count(name, rest) if rest else tales.NUM_TRAIN)
    if name == "python_docs":
        from llama_jax.data.corpora.python_docs import PythonDocs

        return PythonDocs()
    if kind == "tfds":
        return TfdsData(rest, text_field)
    if kind == "hf":
        return HfData(rest, text_field)
    return Files(existing(name, EMBEDDED), text_field, cache_dir)


def existing(name: str, corpora: Sequence[str]) -> str:
    """The absolute path of an existing file or folder; otherwise InputError with the nearest
    name."""
    path = as_path(name)
    if not path.exists():
        near = difflib.get_close_matches(name, corpora, n=1) or _neighbours(path)
        hint = f"; did you mean {near[0]}?" if near else f"; embedded corpora: {', '.join(corpora)}"
        raise InputError(f"data {name} is neither a corpus nor an existing file or folder{hint}")
    return str(path.resolve() if isinstance(path, Path) else path)


def count(name: str, number: str) -> int:
    """The N of `tales:N`."""
    require(
        number.isdecimal() and int(number) > 0,
        f"data {name}: write tales:N with the number to train on, such as tales:50000",
    )
    return int(number)


def _neighbours(path: AnyPath) -> list[str]:
    if not path.parent.is_dir():
        return []
    names = [str(path.parent / p.name) for p in path.parent.iterdir()]
    return difflib.get_close_matches(str(path), names, n=1)


def ranges(total: int) -> list[range]:
    """Record numbers in chunks of one size."""
    return [range(i, min(i + _STORIES, total)) for i in range(0, total, _STORIES)]


@dataclass(frozen=True)
class Tales:
    """The embedded stories."""

    num_train: int = tales.NUM_TRAIN
    name = "tales"

    @property
    def num_validation(self) -> int:
        """One story held out for every 20 to train on, 2,000 at most."""
        return min(tales.NUM_VALIDATION, -(-self.num_train // VALIDATION_SHARE))

    @property
    def identity(self) -> str:
        """Generator version and number of stories."""
        return f"tales {tales.VERSION} {self.num_train} {self.num_validation}"

    def chunks(self, split: str) -> list[range]:
        """Ranges of story numbers."""
        return ranges(self.num_train if split == TRAIN else self.num_validation)

    def documents(self, split: str, chunk: range) -> Iterator[str]:
        """Generated on the fly, which is faster than reading them."""
        return (tales.story(i, split) for i in chunk)


@dataclass(frozen=True)
class ShortTales(Tales):
    """The embedded stories of three to seven sentences, in the form that instructions ask for."""

    name = "short_tales"

    @property
    def identity(self) -> str:
        """Generator version and number of stories."""
        return f"short tales {instructions.VERSION} {self.num_train} {self.num_validation}"

    def documents(self, split: str, chunk: range) -> Iterator[str]:
        """Generated on the fly."""
        return (instructions.short_story(i, split) for i in chunk)


@dataclass(frozen=True)
class Files:
    """A text file or a folder of them; a hash of each document decides its split."""

    path: str
    text_field: str
    cache_dir: str | None = None
    """Folder for cached scans; None disables the cache."""

    @property
    def name(self) -> str:
        """The file's or folder's name without its ending."""
        return Path(self.path).name.split(".")[0] or "files"

    @cached_property
    def _scans(self) -> list[textfiles.Scan]:
        """Of the files that hold text, each text once; the log says what else there is."""
        root = as_path(self.path)
        files, others = folders.search(root, textfiles.SUFFIXES)
        left = defaultdict(list, {why: list(names) for why, names in others.items()})
        scans: dict[str, textfiles.Scan] = {}
        for path in files:
            name = str(path)[len(self.path) :].strip("/")
            # Descriptions of data sets are JSON too.
            described = name and ".json" in path.suffixes
            if described and not textfiles.begins_with(path, self.text_field):
                left[f"no lines of JSON with {self.text_field!r}"].append(name)
                continue
            scan = self._scan(path)
            if not scan.chunks:
                left["empty"].append(name)
            elif scan.digest in scans:
                left["copy of another"].append(name)
            else:
                scans[scan.digest] = scan
        empty = f"folder {root} holds no text; left out: {folders.describe(left)}"
        require(scans, empty if root.is_dir() else f"data {root} is empty")
        folders.say(root, len(scans), left)
        return list(scans.values())

    def _scan(self, path: AnyPath) -> textfiles.Scan:
        if self.cache_dir is None:
            return textfiles.scan(path)
        return scan_cache.scan(path, self.cache_dir)

    @cached_property
    def identity(self) -> str:
        """Contents in order, wherever the files lie."""
        return " ".join(["files", self.text_field, *(scan.digest for scan in self._scans)])

    def chunks(self, split: str) -> list[textfiles.Chunk]:
        """Parts of files."""
        return [chunk for scan in self._scans for chunk in scan.chunks]

    def documents(self, split: str, chunk: textfiles.Chunk) -> Iterator[str]:
        """The documents of a part of a file that belong to the split."""
        for text in textfiles.read_chunk(chunk, self.text_field):
            if text and in_validation(text) == (split == VALIDATION):
                yield text

    def __reduce__(self):
        return Files, (self.path, self.text_field)  # processes get chunks, not the scans


@dataclass(frozen=True)
class _Records:
    """A data set with numbered records and splits of its own; a hash splits off what it lacks."""

    dataset: str
    text_field: str

    @property
    def name(self) -> str:
        """The data set's name, `/` replaced."""
        return self.dataset.replace("/", "-")

    def __reduce__(self):
        return type(self), (self.dataset, self.text_field)  # processes open it themselves

    def _open(self, split: str) -> Any:
        """Something with a length and records by number."""
        raise NotImplementedError

    def _has(self, split: str) -> bool:
        raise NotImplementedError

    def chunks(self, split: str) -> list[range]:
        """Ranges of record numbers."""
        return ranges(len(self._open(split if self._has(split) else TRAIN)))

    def documents(self, split: str, chunk: range) -> Iterator[str]:
        """The text field of the records; InputError if one has none."""
        own = self._has(VALIDATION)
        records = self._open(split if self._has(split) else TRAIN)
        for number in chunk:
            text = self._text(number, records[number])
            if text and (own or in_validation(text) == (split == VALIDATION)):
                yield text

    def _text(self, number: int, record: Mapping[str, Any]) -> str:
        where = f"data {self.name}, record {number}"
        value = record.get(self.text_field)
        if isinstance(value, bytes):
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{where} is not UTF-8 at byte {error.start}") from error
        return textfiles.text_of(record, self.text_field, where)


@dataclass(frozen=True)
class TfdsData(_Records):
    """A TFDS data set, read from ArrayRecord files without TensorFlow."""

    @cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        require(self.dataset, "data tfds: names no data set: write tfds:NAME")
        try:
            builder = tfds.builder(self.dataset, file_format="array_record", try_gcs=False)
        except tfds.core.registered.DatasetNotFoundError as error:
            near = difflib.get_close_matches(
                self.dataset, tfds.list_builders(with_community_datasets=False), n=1
            )
            hint = f"; did you mean tfds:{near[0]}?" if near else ""
            raise InputError(f"data tfds:{self.dataset} is unknown to TFDS{hint}") from error
        formats = [
            str(info.filename_template.filetype_suffix) for info in builder.info.splits.values()
        ]
        require(
            formats and set(formats) == {"array_record"},
            f"data tfds:{self.dataset} is not prepared as ArrayRecord in {builder.data_dir}; run "
            f"`tfds build {self.dataset} --file_format=array_record` once where TensorFlow is "
            "installed, and set TFDS_DATA_DIR to its data_dir",
        )
        return builder

    def _has(self, split: str) -> bool:
        return split in self._builder.info.splits

    def _open(self, split: str) -> Any:
        require(self._has(split), f"data tfds:{self.dataset} has no {split} split")
        source = self._builder.as_data_source(split=split)
        expected = self._builder.info.splits[split].num_examples
        require(
            len(source) == expected,
            f"data tfds:{self.dataset} {split} holds {len(source)} of {expected} records; "
            "prepare it again",
        )
        return source

    @property
    def identity(self) -> str:
        """Name, version and counts."""
        info = self._builder.info
        counts = {name: split.num_examples for name, split in info.splits.items()}
        return f"tfds {info.full_name} {self.text_field} {info.config_description} {counts}"


@dataclass(frozen=True)
class HfData(_Records):
    """A Hugging Face data set: `hf:NAME` or `hf:NAME/config` after an owner."""

    @cached_property
    def _splits(self) -> Any:
        try:
            datasets = importlib.import_module("datasets")  # of the extra, so no static import
        except ImportError as error:
            raise InputError(
                f"data hf:{self.dataset} needs the package `datasets`; "
                "install it with pip install datasets"
            ) from error
        owner, _, rest = self.dataset.partition("/")
        name, _, config = rest.partition("/")
        try:
            return datasets.load_dataset(f"{owner}/{name}" if name else owner, config or None)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            raise InputError(f"data hf:{self.dataset} cannot be loaded: {reason}") from error

    def split(self, name: str) -> Sequence[Mapping[str, Any]]:
        """The records of a split. InputError if the split or the data set does not exist."""
        return self._open(name)

    def _has(self, split: str) -> bool:
        return split in self._splits

    def _open(self, split: str) -> Any:
        require(self._has(split), f"data hf:{self.dataset} has no {split} split")
        return self._splits[split]

    @property
    def identity(self) -> str:
        """Name and Arrow fingerprints of the splits."""
        prints = {name: split._fingerprint for name, split in sorted(self._splits.items())}
        return f"hf {self.dataset} {self.text_field} {prints}"


def digest(*parts: object) -> str:
    """SHA-256 over the parts, in hexadecimal."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
