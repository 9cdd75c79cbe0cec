"""The TFDS builder of prepared records, whose shards are written here, in processes or in Beam.

A recipe defines the records: packed text, dialogues or preferences.
"""

import io
import json
import logging
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import batched
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from llama_jax.config import InputError
from llama_jax.data.processes import Processes
from llama_jax.data.recipes import READ, Layout, Recipe
from llama_jax.data.sources import SPLITS
from llama_jax.runtime.files import as_path, write_atomic

log = logging.getLogger(__name__)

VERSION = 1
"""Increase it whenever shards are cut or stored in another way."""
_MAX_SHARDS = {"train": 1024, "validation": 16}


@dataclass(frozen=True)
class Job:
    """One shard: some chunks of a corpus, and the file for their records."""

    recipe: Recipe
    split: str
    chunks: tuple[Any, ...]
    path: str


class PackedRecords(tfds.core.GeneratorBasedBuilder):
    """Records of one layout; `jobs` write the shards when the data set is prepared."""

    name = "packed"
    VERSION = tfds.core.Version(f"{VERSION}.0.0")
    code_path = None  # TFDS would look for checksums there, with a package it does not require

    def __init__(self, *, jobs: Sequence[Job], workers: int, **kwargs: Any):
        self._jobs, self._workers = jobs, workers
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Token ids in rows of a fixed length.",
            features=features(self._jobs[0].recipe.layout),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any):
        raise NotImplementedError("shards are written by jobs")

    _generate_examples = _split_generators

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        """Write the shards that are missing, then move all of them here."""
        todo = [job for job in self._jobs if not _is_done(job)]
        if len(todo) < len(self._jobs):
            log.info(
                "%d of %d shards are done already", len(self._jobs) - len(todo), len(self._jobs)
            )
        if download_config.beam_runner:
            _run_beam(todo, download_config.beam_runner, download_config.beam_options)
        else:
            _run_here(todo, self._workers)
        for job in self._jobs:
            counts = Counter(self.info.metadata.get(job.split))
            counts.update(json.loads(_counts_path(job).read_bytes()))
            self.info.metadata[job.split] = counts
        self.info.set_splits(tfds.core.SplitDict([s for s in map(self._collect, SPLITS) if s]))

    def _collect(self, split: str) -> Any:
        """Number and move the shards of a split that hold records."""
        paths = [as_path(job.path) for job in self._jobs if job.split == split]
        counted = [(path, _count(path)) for path in paths]
        filled = [(path, count) for path, count in counted if count]
        template = self._get_filename_template(split_name=split)
        size = 0
        for index, (path, _) in enumerate(filled):
            size += path.stat().st_size if hasattr(path.stat(), "st_size") else path.stat().length
            path.rename(template.sharded_filepath(shard_index=index, num_shards=len(filled)))
        return filled and tfds.core.SplitInfo(
            name=split,
            shard_lengths=[count for _, count in filled],
            num_bytes=size,
            filename_template=template,
        )


def features(layout: Layout) -> tfds.features.FeaturesDict:
    """How TFDS stores a record of a layout."""
    return tfds.features.FeaturesDict(
        {
            name: tfds.features.Tensor(
                shape=shape, dtype=dtype, encoding="bytes" if shape else "none"
            )
            for name, (shape, dtype) in layout.items()
        }
    )


def plan(recipe: Recipe, parts: str) -> list[Job]:
    """The shards of every split: they depend on the corpus, never on the machine."""
    jobs = []
    for split in SPLITS:
        chunks = recipe.chunks(split)
        size = max(1, -(-len(chunks) // _MAX_SHARDS[split]))
        for index, group in enumerate(batched(chunks, size)):
            jobs.append(Job(recipe, split, group, f"{parts}/{split}-{index:05d}"))
    return jobs


def write_shard(job: Job) -> Counter[str]:
    """Make the records of a job's chunks and write its file; returns the recipe's counts."""
    from tensorflow_datasets.core import example_serializer, file_adapters

    stored = features(job.recipe.layout)
    serializer = example_serializer.ExampleSerializer(stored.get_serialized_info())
    counts: Counter[str] = Counter()

    def examples() -> Iterator[tuple[int, bytes]]:
        for index, record in enumerate(job.recipe.records(job.split, job.chunks, counts)):
            kept = {name: record[name] for name in stored}
            yield index, serializer.serialize_example(stored.encode_example(kept))

    path = as_path(job.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.ARRAY_RECORD]
    adapter.write_examples(temporary, examples())
    write_atomic(_counts_path(job), json.dumps(counts).encode())
    temporary.replace(path)
    return counts


def _counts_path(job: Job) -> Any:
    path = as_path(job.path)
    return path.parent / f".{path.name}.counts"


def _is_done(job: Job) -> bool:
    return as_path(job.path).exists() and _counts_path(job).exists()


def _run_here(jobs: Sequence[Job], workers: int) -> None:
    """In this process, or in several; never forked, since jax may be running here."""
    workers = min(workers or _cpus(), len(jobs))
    name = jobs[0].recipe.name if jobs else ""
    with tqdm(total=len(jobs), desc=f"preparing {name}", unit="shard", disable=None) as bar:
        if workers > 1 and len(jobs) > len(SPLITS):  # for fewer, processes start too slowly
            try:
                processes = Processes(workers)
            except OSError as error:
                log.info("preparing %s in one process: %s", name, error)
            else:
                with processes:
                    _advance(bar, processes.map(write_shard, jobs))
                return
        _advance(bar, map(write_shard, jobs))


def _cpus() -> int:
    """Those that this process may use, which containers and batch systems limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _advance(bar: tqdm, counted: Iterator[Counter[str]]) -> None:
    documents = 0
    for counts in counted:
        documents += counts[READ]
        bar.update()
        rate = documents / max(bar.format_dict["elapsed"], 1e-3)
        bar.set_postfix_str(f"{documents} documents, {rate:.0f} documents/s")


def _run_beam(jobs: Sequence[Job], runner: str, options: Any) -> None:
    try:
        import apache_beam as beam
    except ImportError as error:
        raise InputError(
            "preparing with Apache Beam needs the package apache-beam; "
            "install it with pip install apache-beam"
        ) from error
    with beam.Pipeline(runner=runner, options=options) as pipeline:
        _ = (
            pipeline
            | "Shards" >> beam.Create(jobs, reshuffle=True)
            | "WriteRecords" >> beam.Map(write_shard)
        )


def build(
    folder: Any, jobs: Sequence[Job], workers: int, beam_runner: str | None, options: Sequence[str]
) -> None:
    """Write the data set into `folder` atomically."""
    parts = as_path(jobs[0].path).parent
    if parts.is_dir():
        for leftover in parts.glob(".*.tmp"):
            leftover.unlink()
    config = tfds.download.DownloadConfig(beam_runner=beam_runner)
    if beam_runner:
        config = config.replace(beam_options=_beam_options(options))
    with redirect_stdout(io.StringIO()):  # TFDS prints what concerns downloads
        builder = PackedRecords(jobs=jobs, workers=workers, data_dir=str(folder))
        builder.download_and_prepare(download_config=config)
    for split, info in builder.info.splits.items():
        held = sum(_count(path) for path in info.filepaths)
        if held != info.num_examples:
            raise RuntimeError(f"{folder} {split} holds {held} records, not {info.num_examples}")
    shutil.rmtree(parts, ignore_errors=True)
    shutil.rmtree(folder / "downloads", ignore_errors=True)  # empty; TFDS makes it


def _beam_options(options: Sequence[str]) -> Any:
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions(list(options))


def data_set_path(folder: Any) -> Any:
    """Path of the data set in a cache folder."""
    return folder / PackedRecords.name / str(PackedRecords.VERSION)


def open_builder(path: str) -> Any:
    """The TFDS builder of a data set on disk."""
    with warnings.catch_warnings():  # TFDS reads its metadata with a call that protobuf deprecates
        warnings.filterwarnings("ignore", "label", DeprecationWarning)
        return tfds.builder_from_directory(path)


def is_complete(folder: Any) -> bool:
    """Whether the data set was moved to its place, which happens last."""
    return (data_set_path(folder) / "dataset_info.json").exists()


def describe(folder: Any) -> dict[str, tuple[int, Mapping[str, int]]]:
    """Records of each split, train first, and the recipe's counts."""
    info = open_builder(str(data_set_path(folder))).info
    sizes = {name: split.num_examples for name, split in info.splits.items()}
    return {split: (sizes.get(split, 0), info.metadata.get(split, {})) for split in SPLITS}


def _count(path: Any) -> int:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    try:
        return reader.num_records()
    finally:
        reader.close()
