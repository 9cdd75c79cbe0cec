"""Every setting of an experiment, as frozen dataclasses that reject invalid values.

An experiment is a Python file with `CONFIG = TrainConfig(...)`: values, no logic, derived from
another with `dataclasses.replace(PARENT.CONFIG, ...)`. `experiment.load_experiment` reads one and
applies command-line overrides. `config_file` keeps what came of it in the run folder.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from llama_jax.config_model import (
    FUNCTION,
    GROUPS,
    MATRICES,
    AdaptedModel,
    Dtype,
    LoraConfig,
    ModelConfig,
    Quantization,
    QuantizedModel,
    plain,
)
from llama_jax.errors import InputError, require

__all__ = [
    "FUNCTION",
    "GROUPS",
    "MATRICES",
    "AdaptedModel",
    "CheckpointConfig",
    "DataConfig",
    "Dtype",
    "InputError",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Quantization",
    "QuantizedModel",
    "TrainConfig",
    "adapted",
    "plain",
    "require",
]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with the paper's defaults (Llama 2, section 2.2)."""

    learning_rate: float
    """Peak learning rate."""
    warmup_steps: int = 2000
    """Steps of linear warm-up from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape after the warm-up."""
    final_ratio: float = 0.1
    """Final value of the cosine, as a share of the peak."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-5
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay of every matrix; norms are not decayed."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""
    moment_dtype: Dtype = "float32"
    """dtype in which the first moment is stored."""

    def __post_init__(self):
        lr = self.learning_rate
        require(0 < lr < float("inf"), f"optimizer.learning_rate={lr} must be positive")
        for name in ("b1", "b2", "final_ratio"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"optimizer.{name}={value} must lie between 0 and 1")
        require(self.b1 < 1 and self.b2 < 1, f"optimizer.b1={self.b1} and b2={self.b2} must be < 1")
        for name in ("warmup_steps", "eps", "weight_decay"):
            value = getattr(self, name)
            require(
                0 <= value < float("inf"), f"optimizer.{name}={value} must be 0 or more, and finite"
            )
        require(self.clip_norm > 0, f"optimizer.clip_norm={self.clip_norm} must be positive")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text to train on, and the folder of prepared data."""

    dataset: str
    """`tales`, `python_docs`, a .jsonl or .txt file, a folder of those, `tfds:NAME`, `hf:NAME`,
    or a weighted mixture such as `tales=0.7,my.jsonl=0.3`."""
    tokenizer: str | None = None
    """Path of a sentencepiece model. None trains one with model.vocab_size pieces on the corpus."""
    cache_dir: str = "~/.cache/llama_jax"
    """Folder of prepared data sets, which are named by fingerprint."""
    format: str | None = None
    """Format of conversation files (see `llama-jax data show --help`); None to detect it."""
    text_field: str = "text"
    """Field that holds the text in jsonl, TFDS and Hugging Face records."""
    workers: int = 0
    """Processes that tokenise and pack; 0 for one per CPU."""

    def __post_init__(self):
        require(self.dataset.strip(), "data.dataset is empty: name a corpus, a file or a folder")
        require(self.workers >= 0, f"data.workers={self.workers} must not be negative")
        require(
            "://" not in self.cache_dir,
            f"data.cache_dir={self.cache_dir}: records are read in place; name a folder on a file "
            "system (each host may have its own: what they prepare is the same)",
        )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Number of devices along each parallel axis; -1 on one axis takes all that are left."""

    slice: int = 1
    """Slices joined by the data-centre network, with data parallelism between them."""
    data: int = 1
    """Replicas of the parameters."""
    fsdp: int = -1
    """Fully sharded: parameters, gradients and optimizer state are split, and so are batches."""
    sequence: int = 1
    """Context parallel: the positions of each row are split."""
    tensor: int = 1
    """Heads, MLP and vocabulary are split."""

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        bad = {k: v for k, v in sizes.items() if v != -1 and v < 1}
        require(not bad, f"mesh axes must be positive or -1, not {bad}")
        filled = [k for k, v in sizes.items() if v == -1]
        require(len(filled) <= 1, f"only one mesh axis may be -1, not {' and '.join(filled)}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The intervals of saves, and the saves to keep."""

    every: int = 1000
    """Steps between saves; the last step is always saved."""
    keep: int = 3
    """Newest saves to keep."""
    keep_every: int = 0
    """Also keep every save at a multiple of this step; 0 for none."""
    weights_only: bool = False
    """Save only the parameters, in bfloat16: 2 bytes each, where the whole state takes 12. A run
    that resumes from them restarts its optimizer's moments."""

    def __post_init__(self):
        require(self.every > 0, f"checkpoint.every={self.every} must be positive")
        require(self.keep > 0, f"checkpoint.keep={self.keep} must be positive")
        require(self.keep_every >= 0, f"checkpoint.keep_every={self.keep_every} is negative")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One pretraining run; the base of the other stages' experiments (config_align.py)."""

    stage: ClassVar[str] = "train"
    """The command that runs it."""
    workdir: str
    """Run folder: config.json, metrics.jsonl, tensorboard/, checkpoints/, samples/."""
    steps: int
    """Total number of optimizer updates."""
    batch_size: int
    """B: rows of the global batch, over all devices and hosts."""
    seq_len: int
    """T: tokens in a row."""
    seed: int = 0
    """Seeds the initial weights and the order of the data."""
    init_from: str | None = None
    """Model in any format, or run folder, whose parameters a new run starts from; in a bucket, one
    of our own folders; None for fresh ones. They are cast to model.param_dtype."""
    init_from_config: bool = False
    """Take shape and function of the model (widths, rotary base, ...) from init_from as well."""
    accumulate: int = 1
    """Micro-batches whose gradients are summed before one update."""
    z_loss: float = 0.0
    """Weight of the squared log-partition penalty; 0 as in the paper."""
    log_every: int = 10
    """Steps between lines of metrics."""
    eval_every: int = 500
    """Steps between evaluations; the last step is always evaluated. 0 for never."""
    eval_batches: int = 0
    """Batches of the validation split to use, spread over it; 0 for all."""
    eval_tasks: tuple[str, ...] = ()
    """Benchmark tasks, names or files, evaluated at each evaluation (train, sft and dpo)."""
    eval_questions: int = 100
    """Number of questions of each of these tasks, from the first on; 0 for all."""
    eval_data: str = ""
    """Folder with the data of these tasks; empty for that of a task's own file."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts that are continued greedily after each evaluation; the texts go to samples/."""
    profile_steps: tuple[int, int] = (0, 0)
    """First and last step of a profiler trace, for xprof; (0, 0) for none."""
    max_skipped: int = 10
    """Stop after this many non-finite updates in a row."""
    watchdog_seconds: float = 1800.0
    """Dump all stacks and exit 75 when no step ends for this long; 0 for never."""
    compilation_cache: str = "~/.cache/llama_jax/xla"
    """Folder of compiled programs; empty disables the cache."""
    model: ModelConfig
    optimizer: OptimizerConfig
    data: DataConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self):
        for name in ("steps", "batch_size", "seq_len", "accumulate", "log_every", "max_skipped"):
            value = getattr(self, name)
            require(value > 0, f"{name}={value} must be positive")
        for name in (
            "seed", "z_loss", "eval_every", "eval_batches", "eval_questions", "watchdog_seconds"
        ):  # fmt: skip
            value = getattr(self, name)
            require(value >= 0, f"{name}={value} must not be negative")
        require(self.workdir, "workdir is empty: name the folder of the run")
        require(self.steps < 2**31, f"steps={self.steps} must be below 2147483648")
        require(self.seq_len > 1, f"seq_len={self.seq_len} must be 2 or more: a token and the next")
        require(
            self.seq_len <= self.model.max_seq_len,
            f"seq_len={self.seq_len} exceeds model.max_seq_len={self.model.max_seq_len}",
        )
        require(
            self.batch_size % self.accumulate == 0,
            f"batch_size={self.batch_size} must be divisible by accumulate={self.accumulate}",
        )
        require(
            self.model.param_dtype != "float16",
            "model.param_dtype=float16 cannot hold small gradients: train in float32 or bfloat16",
        )
        require(
            not self.lora.rank or self.init_from,
            f"lora.rank={self.lora.rank} needs a model to adapt: name it with --init-from",
        )
        require(
            self.lora.rank <= self.model.d_model,
            f"lora.rank={self.lora.rank} exceeds model.d_model={self.model.d_model}: adapters of "
            "so many dimensions are larger than the matrices; choose a lower rank",
        )
        require(
            not self.lora.rank or not self.checkpoint.weights_only,
            "checkpoint.weights_only=True is for runs that train all weights: checkpoints of "
            f"lora.rank={self.lora.rank} hold the adapters alone; leave one of them out",
        )
        require(self.seed < 2**32, f"seed={self.seed} must be less than 4294967296")
        require(
            not self.eval_tasks or self.eval_every,
            f"eval_tasks={', '.join(self.eval_tasks)} need evaluations: set eval_every, which is 0",
        )
        first, last = self.profile_steps
        require(
            first == last == 0 or 0 < first <= last,
            f"profile_steps={first} {last} must be the first and the last step to trace, or 0 0",
        )

    @property
    def updates(self) -> int:
        """Number of optimizer updates in the whole run."""
        return self.steps

    @property
    def saved_model(self) -> ModelConfig:
        """The model in the form that its checkpoints store."""
        if not self.checkpoint.weights_only:
            return self.model
        return dataclasses.replace(self.model, param_dtype="bfloat16")


def adapted[C: TrainConfig](config: C) -> C:
    """The experiment with the adapters that it asks for added to its model."""
    if not config.lora.rank:
        return config
    return dataclasses.replace(config, model=AdaptedModel.of(config.model, config.lora))
