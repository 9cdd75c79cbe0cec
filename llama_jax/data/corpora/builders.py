"""The embedded corpora as TFDS data sets in ArrayRecord files, for any program that reads TFDS.

Both need neither a download nor TensorFlow: `Tales(data_dir=...).download_and_prepare()`, then
`as_data_source(split="train")`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import tensorflow_datasets as tfds

from llama_jax.data.corpora import python_docs, tales


class _TextBuilder(tfds.core.GeneratorBasedBuilder):
    """Documents under the one feature `text`, stored as ArrayRecord."""

    code_path = None  # TFDS would look for checksums there, with a package it does not require

    def __init__(self, **kwargs: Any):
        super().__init__(**{"file_format": "array_record", **kwargs})

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, description=self.__doc__, features=features)

    def _generate_examples(self, documents: Iterator[str]):
        for index, text in enumerate(documents):
            yield index, {"text": text}

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        check_counts(self)


class Tales(_TextBuilder):
    """Generated short stories with a small vocabulary."""

    VERSION = tfds.core.Version(f"{tales.VERSION}.0.0")

    def _split_generators(self, dl_manager: Any):
        sizes = {"train": tales.NUM_TRAIN, "validation": tales.NUM_VALIDATION}
        return {
            split: self._generate_examples(map(partial(tales.story, split=split), range(size)))
            for split, size in sizes.items()
        }


class PythonDocs(_TextBuilder):
    """Prose that every CPython carries: its help topics and the standard library's docstrings."""

    VERSION = tfds.core.Version(python_docs.VERSION)

    def _split_generators(self, dl_manager: Any):
        return {
            split: self._generate_examples(iter(python_docs.documents(split)))
            for split in ("train", "validation")
        }


def check_counts(builder: tfds.core.DatasetBuilder) -> None:
    """Raise RuntimeError if a split holds another number of examples than its metadata says."""
    for split, info in builder.info.splits.items():
        counted = sum(_count(path) for path in info.filepaths)
        if counted != info.num_examples:
            raise RuntimeError(
                f"{builder.name} {split} holds {counted} examples, its metadata says "
                f"{info.num_examples}; delete {builder.data_dir} and prepare it again"
            )


def _count(path: Any) -> int:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    try:
        return reader.num_records()
    finally:
        reader.close()
