"""Tokenises and packs a corpus once, into ArrayRecord files named by a fingerprint.

The work is cut into shards by the corpus alone, so one process, many processes and Apache Beam
write the same records in the same order. Shards are finished under a `.parts` folder; what is
whole there is kept when a preparation is killed and taken up by the next one. Only when every
shard is done does a TFDS builder move them to their place, in one rename.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from llama_jax.config import DataConfig, InputError, require
from llama_jax.data import tokenizer as tokenizers
from llama_jax.data.recipes import PIECE_BYTES, TEXT_BYTES, PackedText, Recipe
from llama_jax.data.sources import SPLITS, TRAIN, VALIDATION, Source, digest, resolve
from llama_jax.data.tokenizer import Tokenizer, train_tokenizer
from llama_jax.runtime.files import as_path, reason
from llama_jax.runtime.places import cache_folder

log = logging.getLogger(__name__)

MAX_TRAINING_BYTES = 20 << 20
"""Amount of text that a tokenizer is trained on; more hardly changes it."""


@dataclass(frozen=True)
class Prepared:
    """Packed records of one corpus and split, on disk and complete."""

    name: str
    """Name of the corpus in messages: `tales`, a file name, ..."""
    path: str
    """Folder of the TFDS data set."""
    split: str
    """`train` or `validation`."""
    fingerprint: str
    """Digest of corpus, tokenizer, T and packing: equal fingerprints hold equal records."""
    seq_len: int
    """T: tokens in a record."""
    num_records: int
    """Records in the split."""
    text_bytes: int = 0
    """UTF-8 bytes of the documents; 0 where they were not counted."""
    piece_bytes: int = 0
    """`packing.target_bytes` of the records; differs from text_bytes where the tokenizer changes
    the text."""
    columns: str | None = None
    """A .npz file of further arrays with one entry per record, which are added to the records."""


@dataclass(frozen=True)
class Mixture:
    """Prepared corpora and the weight of each; one part for a plain data set."""

    parts: tuple[Prepared, ...]
    weights: tuple[float, ...]
    """Each part's share of the rows; they sum to 1."""

    @property
    def fingerprint(self) -> str:
        """Digest of the parts and weights."""
        return digest("mixture", *(part.fingerprint for part in self.parts), self.weights)

    @property
    def seq_len(self) -> int:
        """T: tokens in a record."""
        return self.parts[0].seq_len

    @property
    def num_records(self) -> int:
        """Records of all parts together."""
        return sum(part.num_records for part in self.parts)

    @property
    def bytes_per_piece_byte(self) -> float:
        """Bytes of text per byte that its pieces spell; 1 unless the tokenizer changes the text."""
        spelled = sum(part.piece_bytes for part in self.parts)
        return sum(part.text_bytes for part in self.parts) / spelled if spelled else 1.0

    def passes(self, rows: int) -> str:
        """How often this many rows pass through each part: "tales 0.7 times, my 12 times"."""
        shares = zip(self.parts, self.weights, strict=True)
        return ", ".join(f"{p.name} {rows * w / p.num_records:.3g} times" for p, w in shares)


def prepare(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> dict[str, Mixture]:
    """Records of T tokens for `config.dataset`: `{"train": Mixture, "validation": Mixture}`.

    Reads the cache when it holds them; otherwise tokenises and packs in `config.workers`
    processes, with a progress bar on stderr, or in an Apache Beam pipeline (`beam_runner` such
    as "DirectRunner", extra `beam`) whose workers see `config.cache_dir`. A part of a mixture
    without held-out documents has no share in `validation`, which is absent if none has any.

    Raises InputError for whatever is wrong with the corpus: one line, file and line named.
    """
    config = replace(config, cache_dir=cache_folder(config.cache_dir, "data.cache_dir"))
    weighted = resolve(config.dataset, config.text_field, config.cache_dir)
    recipes = [(PackedText(source, tokenizer, seq_len), weight) for source, weight in weighted]
    return prepare_recipes(recipes, config, beam_runner, beam_options)


def prepare_recipes(
    weighted: Sequence[tuple[Recipe, float]],
    config: DataConfig,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> dict[str, Mixture]:
    """Records that recipes make, mixed by weight, like `prepare` for text.

    If a hash would hold out every document of a corpus, it is too small to hold any out: all of it
    is trained on. Raises InputError if a recipe makes no record at all.
    """
    config = replace(config, cache_dir=cache_folder(config.cache_dir, "data.cache_dir"))
    parts: dict[str, list[tuple[Prepared, float]]] = {split: [] for split in SPLITS}
    for recipe, weight in weighted:
        done = _prepare_recipe(recipe, config, beam_runner, beam_options)
        for split, prepared in done.items():
            parts[split].append((prepared, weight))
    return {split: _mixture(found) for split, found in parts.items() if found}


def _mixture(parts: list[tuple[Prepared, float]]) -> Mixture:
    total = sum(weight for _, weight in parts)
    return Mixture(tuple(part for part, _ in parts), tuple(weight / total for _, weight in parts))


def _prepare_recipe(
    recipe: Recipe, config: DataConfig, beam_runner: str | None, beam_options: Sequence[str]
) -> dict[str, Prepared]:
    from llama_jax.data import shards  # brings in TFDS

    fingerprint = digest("records", *recipe.identity, shards.VERSION)
    folder = Path(config.cache_dir) / f"{recipe.name}-{fingerprint[:16]}"
    with _lock(folder):
        if not shards.is_complete(folder):
            log.info("preparing %s for seq_len %d in %s", recipe.name, recipe.seq_len, folder)
            jobs = shards.plan(recipe, f"{folder}.parts")
            shards.build(folder, jobs, config.workers, beam_runner, beam_options)
    done, reports = {}, []
    for split, (num_records, counts) in shards.describe(folder).items():
        if report := recipe.report(counts, num_records):
            reports.append(f"{split}: {report}")
        if num_records:
            done[split] = Prepared(
                name=recipe.name,
                path=str(shards.data_set_path(folder)),
                split=split,
                fingerprint=digest(fingerprint, split),
                seq_len=recipe.seq_len,
                num_records=num_records,
                text_bytes=counts.get(TEXT_BYTES, 0),
                piece_bytes=counts.get(PIECE_BYTES, 0),
            )
    told = "; ".join(reports)
    require(
        done, f"data {recipe.name} holds no {recipe.kind} to train on" + f": {told}" * bool(told)
    )
    if VALIDATION not in done or TRAIN not in done:
        told += f"{'; ' if told else ''}nothing is held out: there is no validation"
    if told:
        log.info("data %s: %s", recipe.name, told)
    return done if TRAIN in done else {TRAIN: done[VALIDATION]}


@contextmanager
def _lock(folder: Path):
    """One process of this machine at a time; others wait. The lock ends with its process."""
    import fcntl

    with Path(f"{folder}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another program that prepares %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def resolve_tokenizer(config: DataConfig, vocab_size: int) -> Tokenizer:
    """The tokenizer that `config.tokenizer` names, or one trained on the corpus's train split.

    Trained ones see at most 20 MiB of text, taken from the parts of a mixture by weight. They
    are kept in `config.cache_dir`, named by the fingerprint of corpus and size.

    Raises InputError if the named one cannot be loaded, if it has more pieces than
    `vocab_size`, or if the corpus does not support `vocab_size` pieces.
    """
    if config.tokenizer is not None:
        tokenizer = Tokenizer.load(config.tokenizer)
        require(
            tokenizer.vocab_size <= vocab_size,
            f"tokenizer {config.tokenizer} has {tokenizer.vocab_size} pieces, more than "
            f"model.vocab_size={vocab_size}; set --model.vocab-size {tokenizer.vocab_size}",
        )
        return tokenizer
    config = replace(config, cache_dir=cache_folder(config.cache_dir, "data.cache_dir"))
    weighted = resolve(config.dataset, config.text_field, config.cache_dir)
    identity = [(source.identity, weight) for source, weight in weighted]
    fingerprint = digest("tokenizer", identity, vocab_size, MAX_TRAINING_BYTES, tokenizers.VERSION)
    path = as_path(config.cache_dir) / f"tokenizer-{vocab_size}-{fingerprint[:16]}.model"
    with _lock(path):
        if path.exists():
            return Tokenizer.load(path)
        log.info("training a tokenizer of %d pieces on %s", vocab_size, config.dataset)
        tokenizer = train_tokenizer(_texts(weighted), vocab_size)
        tokenizer.save(path)
    return tokenizer


def train_tokenizer_on(
    inputs: Sequence[str], vocab_size: int, output: str, text_field: str = "text"
) -> Tokenizer:
    """Train on the train splits of corpora, files or folders; write DIR/tokenizer.model.

    Raises InputError if an input cannot be read, the inputs do not support `vocab_size` pieces, or
    the folder cannot be written.
    """
    sources = [source for spec in inputs for source, _ in resolve(spec, text_field)]
    texts = _texts([(source, 1 / len(sources)) for source in sources])
    tokenizer = train_tokenizer(texts, vocab_size)
    folder = as_path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
    except OSError as error:
        raise InputError(f"--output {folder} cannot be written: {reason(error)}") from error
    return tokenizer


def _texts(weighted: Sequence[tuple[Source, float]]) -> Iterator[str]:
    """What a tokenizer is trained on: documents of the sources, 20 MiB by weight."""
    for source, weight in weighted:
        for split in SPLITS:  # the second one where a hash holds out every document
            texts = _first_bytes(source, split, int(MAX_TRAINING_BYTES * weight))
            if (first := next(texts, None)) is not None:
                yield first
                yield from texts
                break


def _first_bytes(source: Source, split: str, limit: int) -> Iterator[str]:
    """Documents of a split, spread over its chunks, until `limit` bytes."""
    chunks = source.chunks(split)
    stride = max(1, len(chunks) // 16)
    for start in range(stride):
        for chunk in islice(chunks, start, None, stride):
            for text in source.documents(split, chunk):
                yield text
                limit -= len(text.encode("utf-8", "replace"))
                if limit <= 0:
                    return


__all__ = [
    "TRAIN",
    "VALIDATION",
    "Mixture",
    "Prepared",
    "prepare",
    "resolve_tokenizer",
    "train_tokenizer_on",
]
