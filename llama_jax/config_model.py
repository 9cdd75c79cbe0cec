"""Settings of a model: shape and numerics, LoRA adapters, quantisation."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llama_jax.errors import require

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder-only Llama: its shape, its numerics and how it is computed."""

    vocab_size: int
    """V: rows of the embedding table and columns of the head."""
    d_model: int
    """D: width of the residual stream."""
    num_layers: int
    """L: decoder layers."""
    num_heads: int
    """N: query heads."""
    num_kv_heads: int
    """K: key and value heads; N for multi-head attention, fewer for grouped-query attention."""
    head_dim: int
    """H: width of one head."""
    d_ff: int
    """F: width of the SwiGLU MLP."""
    max_seq_len: int
    """Maximum context in tokens, extension included."""
    norm_eps: float
    """Added to the mean square inside RMSNorm."""
    tie_embeddings: bool = False
    """Use the embedding table as the head as well."""
    head: Literal["language", "score"] = "language"
    """Head of the model: logits of the next token, or one score, as in reward and value models."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: Literal["none", "linear", "ntk", "yarn"] = "none"
    """Method that extends the rotary embedding beyond the context that the model was pretrained
    with."""
    rope_factor: float = 1.0
    """Extended context over pretrained context: 8 takes a 4k model to 32k."""
    dtype: Dtype = "bfloat16"
    """Compute dtype of the matrix products; norms, softmax, rotary angles and loss are float32."""
    param_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """dtype in which the parameters are stored; float16 only for converted models, not for
    training."""
    attention: Literal["auto", "xla", "pallas", "cudnn"] = "auto"
    """Attention implementation. auto picks by device and shape; an implementation that you name is
    used or raises an error. pallas is for TPUs (head_dim 64 or 128) and is interpreted, slowly, on
    a CPU; cudnn is for GPUs."""
    remat: Literal["none", "full", "dots", "qkvo", "offload"] = "none"
    """What the backward pass recomputes: nothing, the whole layer, all but the outputs of matrix
    products, all but q, k, v and the results of attention, or the same with these kept in host
    memory."""

    lora: ClassVar["LoraConfig | None"] = None
    """Adapters of the layers; see `AdaptedModel`."""
    quant: ClassVar["Quantization | None"] = None
    """Quantisation of the matrices; see `QuantizedModel`."""

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads",
                     "head_dim", "d_ff", "max_seq_len"):  # fmt: skip
            value = getattr(self, name)
            require(value > 0, f"model.{name}={value} must be positive")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} must be divisible by "
            f"model.num_kv_heads={self.num_kv_heads}",
        )
        require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} must be even (rotary)")
        require(self.norm_eps > 0, f"model.norm_eps={self.norm_eps} must be positive")
        require(self.rope_theta > 1, f"model.rope_theta={self.rope_theta} must exceed 1")
        require(self.rope_factor >= 1, f"model.rope_factor={self.rope_factor} must be at least 1")
        require(
            (self.rope_scaling == "none") == (self.rope_factor == 1),
            f"model.rope_scaling={self.rope_scaling} does not go with "
            f"model.rope_factor={self.rope_factor}: use none with 1, another with more than 1",
        )

    @property
    def pretrained_seq_len(self) -> float:
        """Context length before extension."""
        return self.max_seq_len / self.rope_factor


FUNCTION = ("norm_eps", "rope_theta", "rope_scaling", "rope_factor")
"""Settings that determine what the same tensors compute."""
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
"""Names of a layer's matrices."""


GROUPS = {"int8": (0,), "int4": (32, 128), "nf4": (64,)}
"""Numbers of inputs that may share a scale, the default first; 0 for all inputs of an output."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Quantised matrices, multiplied in the compute dtype; see model/matrix.py."""

    weights: Literal["int8", "int4", "nf4"]
    """Type of the matrices of the layers."""
    group: int = 0
    """Inputs of a matrix that share a scale; 0 for all."""
    embeddings: bool = False
    """Keep the embedding and the head in int8 as well, with a scale for each token."""
    kv: Literal["model", "int8"] = "model"
    """dtype of keys and values in the cache: the compute dtype, or int8 with a scale for each head
    and position. They are rounded wherever the model computes, with or without a cache."""

    def __post_init__(self):
        groups = GROUPS[self.weights]
        require(
            self.group in groups,
            f"group={self.group} does not go with {self.weights}: choose "
            f"{' or '.join(map(str, groups))}",
        )

    @staticmethod
    def of(weights: Any, group: int | None = None, kv: Any = "model") -> "Quantization":
        """Quantisation of a whole model, with the default group of the type."""
        group = GROUPS[weights][0] if group is None else group
        return Quantization(weights=weights, group=group, embeddings=True, kv=kv)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): W stays fixed, and alpha/rank A B is added to it."""

    rank: int = 0
    """Width of A and B, the only weights that are trained; 0 trains all weights."""
    alpha: float | None = None
    """Weight of an adapter, before it is divided by the rank; None for twice the rank."""
    targets: tuple[str, ...] = MATRICES
    """Matrices of a layer that get an adapter."""
    base: Literal["dense", "int8", "nf4"] = "dense"
    """How the layers' own matrices are stored meanwhile: in model.param_dtype, in int8, or in 4
    bits (QLoRA, Dettmers et al. 2023)."""

    def __post_init__(self):
        require(self.rank >= 0, f"lora.rank={self.rank} must not be negative; 0 for no adapters")
        require(
            self.alpha is None or 0 < self.alpha < float("inf"),
            f"lora.alpha={self.alpha} must be positive",
        )
        require(self.targets, f"lora.targets is empty: name some of {', '.join(MATRICES)}")
        for name in self.targets:
            near = difflib.get_close_matches(name, MATRICES, n=1, cutoff=0.0)
            require(
                name in MATRICES,
                f"lora.targets has no matrix {name!r}; did you mean {near[0]}? All are "
                f"{', '.join(MATRICES)}",
            )
            require(self.targets.count(name) == 1, f"lora.targets names {name} twice")
        require(
            self.base == "dense" or self.rank,
            f"lora.base={self.base} needs adapters to train: set lora.rank",
        )

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank


@dataclass(frozen=True, kw_only=True)
class AdaptedModel(ModelConfig):
    """A model with adapters beside its weights, as during their training."""

    lora: LoraConfig  # type: ignore[misc]

    @staticmethod
    def of(model: ModelConfig, lora: LoraConfig) -> "AdaptedModel":
        """The model with these adapters."""
        return AdaptedModel(**_fields(plain(model)), lora=lora)

    @property
    def quant(self) -> Quantization | None:  # type: ignore[override]
        """Quantisation of the base."""
        if self.lora.base == "dense":
            return None
        return Quantization(weights=self.lora.base, group=GROUPS[self.lora.base][0])


@dataclass(frozen=True, kw_only=True)
class QuantizedModel(ModelConfig):
    """A model with quantised matrices."""

    quant: Quantization  # type: ignore[misc]

    @staticmethod
    def of(model: ModelConfig, quant: Quantization) -> "QuantizedModel":
        """The model with this quantisation."""
        return QuantizedModel(**_fields(plain(model)), quant=quant)


def plain(model: ModelConfig) -> ModelConfig:
    """The model with all weights dense and without adapters."""
    own = {k: v for k, v in _fields(model).items() if k not in ("lora", "quant")}
    return ModelConfig(**own)


def _fields(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
