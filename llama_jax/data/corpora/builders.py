"""The embedded corpora as TFDS data sets in ArrayRecord files, for any program that reads TFDS.

None needs a download or TensorFlow: `Tales(data_dir=...).download_and_prepare()`, then
`as_data_source(split="train")`.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from llama_jax.data.corpora import python_docs, tales
from llama_jax.data.corpora.tales import instructions, preferences
from llama_jax.data.records import Preference

_TEXT = tfds.features.Text()
_MESSAGES = tfds.features.Sequence({"role": _TEXT, "content": _TEXT})


class _Builder(tfds.core.GeneratorBasedBuilder):
    """Examples with FEATURES, stored as ArrayRecord."""

    FEATURES: ClassVar[Mapping[str, Any]] = {"text": _TEXT}
    code_path = None  # TFDS would look for checksums there, with a package it does not require

    def __init__(self, **kwargs: Any):
        super().__init__(**{"file_format": "array_record", **kwargs})

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(dict(self.FEATURES))
        return tfds.core.DatasetInfo(builder=self, description=self.__doc__, features=features)

    def _generate_examples(self, examples: Iterable[Any]):
        for index, example in enumerate(examples):
            yield index, {"text": example} if isinstance(example, str) else self._values(example)

    def _values(self, record: Any) -> dict[str, Any]:
        """The features of a record; messages keep their role and content."""
        values = {name: getattr(record, name) for name in self.FEATURES}
        kept = [{k: m[k] for k in ("role", "content")} for m in record.messages]
        return values | {"messages": kept}

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        check_counts(self)


class Tales(_Builder):
    """Generated short stories with a small vocabulary."""

    VERSION = tfds.core.Version(f"{tales.VERSION}.0.0")

    def _split_generators(self, dl_manager: Any):
        sizes = {"train": tales.NUM_TRAIN, "validation": tales.NUM_VALIDATION}
        return {
            split: self._generate_examples(map(partial(tales.story, split=split), range(size)))
            for split, size in sizes.items()
        }


class TalesDialogues(_Builder):
    """Generated dialogues: instructions with checkable wishes, and answers that meet them."""

    VERSION = tfds.core.Version(f"{instructions.VERSION}.0.0")
    FEATURES: ClassVar = {"messages": _MESSAGES}

    def _split_generators(self, dl_manager: Any):
        return {
            split: self._generate_examples(
                map(partial(instructions.demonstration, split=split), range(size))
            )
            for split, size in _record_sizes().items()
        }


class TalesPreferences(_Builder):
    """Generated pairs of answers with ratings of 0 to 3; `helpfulness` first, then `safety`."""

    VERSION = tfds.core.Version(f"{instructions.VERSION}.0.0")
    FEATURES: ClassVar = {
        "messages": _MESSAGES, "chosen": _TEXT, "rejected": _TEXT, "rating": np.int32,
        "safe_chosen": np.bool_, "safe_rejected": np.bool_,
    }  # fmt: skip

    def _split_generators(self, dl_manager: Any):
        return {
            split: self._generate_examples(self._pairs(split, size))
            for split, size in _record_sizes().items()
        }

    def _pairs(self, split: str, size: int) -> Iterator[Preference]:
        for kind in preferences.MIXES:
            yield from (preferences.preference(i, split, kind) for i in range(size))


class PythonDocs(_Builder):
    """English prose that ships with every CPython: help topics and standard-library docstrings."""

    VERSION = tfds.core.Version(python_docs.VERSION)

    def _split_generators(self, dl_manager: Any):
        return {
            split: self._generate_examples(iter(python_docs.documents(split)))
            for split in ("train", "validation")
        }


def _record_sizes() -> dict[str, int]:
    return {"train": instructions.NUM_TRAIN, "validation": instructions.NUM_VALIDATION}


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
