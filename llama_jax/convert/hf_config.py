"""config.json of Hugging Face's LlamaForCausalLM <-> ModelConfig, in every spelling so far.

transformers 5 keeps all rotary settings in `rope_parameters`; before, `rope_theta` stood alone and
`rope_scaling` held the rest, its kind under `rope_type` or `type`. What transformers assumes where
a setting is absent is assumed here; what we do not compute is refused by name and value.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_jax.config import InputError, ModelConfig, require
from llama_jax.runtime.files import shown

# Settings that must have one of these values, or be absent.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "alibi": (False,),
}
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"}
# Settings that change what is computed, and the values of those that we compute; None is absent.
_ROPE_DEFAULTS: dict[str, tuple[Any, ...]] = {"partial_rotary_factor": (None, 1)}
_YARN_DEFAULTS: dict[str, tuple[Any, ...]] = _ROPE_DEFAULTS | {
    "beta_fast": (None, 32),
    "beta_slow": (None, 1),
    "truncate": (None, True),
    "mscale": (None, 0, 1),
    "mscale_all_dim": (None, 0),
}


def from_hf(values: Mapping[str, Any], where: Path, dtype: str) -> tuple[ModelConfig, list[str]]:
    """Our configuration from parsed JSON, with weights in `dtype`, and notes for the report.

    Raises InputError naming the setting, its value and what is supported.
    """
    _require_supported(values, _SUPPORTED, where, "")
    D = _size(values, "hidden_size", where)
    N = _size(values, "num_attention_heads", where)
    K = _size(values, "num_key_value_heads", where, N)
    require(
        values.get("head_dim") or D % N == 0, f"{where}: hidden_size={D} is not a multiple of {N}"
    )
    context = _size(values, "max_position_embeddings", where, 2048)
    rope, notes = _rope(values, context, where)
    try:
        config = ModelConfig(
            vocab_size=_size(values, "vocab_size", where),
            d_model=D,
            num_layers=_size(values, "num_hidden_layers", where),
            num_heads=N,
            num_kv_heads=K,
            head_dim=_size(values, "head_dim", where, D // N),
            d_ff=_size(values, "intermediate_size", where),
            norm_eps=_number(values, "rms_norm_eps", where, 1e-6),
            tie_embeddings=bool(values.get("tie_word_embeddings", False)),
            dtype="float32" if dtype == "float32" else "bfloat16",
            param_dtype=dtype,  # pyrefly: ignore[bad-argument-type]
            **rope,
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return config, notes


def _require_supported(
    values: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]], where: Path, what: str
) -> None:
    """InputError for a setting that is neither absent nor one of those that we compute."""
    for name, supported in known.items():
        value = values.get(name, supported[0])
        require(
            isinstance(value, str | int | float | None) and value in supported,
            f"{where}: {what}{name}={shown(value, 80)} is not supported; only "
            f"{supported[-1] if what else supported[0]!r} is",
        )


def _rope(values: Mapping[str, Any], context: int, where: Path) -> tuple[dict[str, Any], list[str]]:
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    require(isinstance(given, dict), f"{where}: rope_parameters={shown(given)} is not an object")
    kind = given.get("rope_type", given.get("type", "default"))
    theta = _number(given, "rope_theta", where, _number(values, "rope_theta", where, 10_000.0))
    plain = {"rope_theta": theta, "max_seq_len": context}
    _require_supported(given, _ROPE_DEFAULTS, where, "rope setting ")
    # A factor of 1 extends nothing, in whichever way.
    alike = given.get("factor") == 1 and given.get("attention_factor") in (None, 1)
    if kind == "default" or (alike and kind in ("linear", "dynamic", "yarn", "llama3")):
        return plain, []
    if kind == "dynamic":
        return plain, [
            f"Left out: rope_type=dynamic, which changes the frequencies of texts beyond "
            f"{context} tokens alone, where this model ends."
        ]
    require(
        kind in ("linear", "yarn"),
        f"{where}: rope_type={shown(kind)} is not supported; default, linear and yarn are",
    )
    factor = _number(given, "factor", where)
    scaled = {"rope_scaling": kind, "rope_factor": factor, "rope_theta": theta}
    known = _ROPE_KEYS | set(_YARN_DEFAULTS if kind == "yarn" else _ROPE_DEFAULTS)
    known |= {"attention_factor"} if kind == "yarn" else set()
    unknown = {k: v for k, v in given.items() if k not in known and v is not None}
    notes = []
    if unknown:
        notes.append(
            f"Left out: rope settings {shown(unknown, 120)}, which change nothing of {kind}."
        )
    if kind == "linear":
        return {**scaled, "max_seq_len": context}, notes
    _require_supported(given, _YARN_DEFAULTS, where, "rope setting ")
    amplitude = given.get("attention_factor")
    usual = 0.1 * math.log(max(factor, 1)) + 1.0
    require(
        amplitude is None or (isinstance(amplitude, float) and abs(amplitude - usual) < 1e-6),
        f"{where}: rope setting attention_factor={shown(amplitude)} is not supported; only "
        f"{usual:.6f} is, which belongs to factor={factor:g}",
    )
    pretrained = values.get("original_max_position_embeddings")
    pretrained = (
        _size({"length": pretrained}, "length", where)
        if pretrained
        else _size(given, "original_max_position_embeddings", where, context)
    )
    reach = pretrained * factor
    require(
        reach == int(reach) and reach < 2**31,
        f"{where}: factor={factor:g} times {pretrained} is not a whole length",
    )
    if reach != context:
        notes.append(
            f"The context is {int(reach)}, original_max_position_embeddings={pretrained} times "
            f"factor={factor:g}; max_position_embeddings said {context}."
        )
    return {**scaled, "max_seq_len": int(reach)}, notes


def _size(values: Mapping[str, Any], name: str, where: Path, default: int | None = None) -> int:
    value = values.get(name)
    value = default if value is None else value
    require(value is not None, f"{where}: {name} is missing")
    require(
        type(value) is int and 0 < value < 2**31, f"{where}: {name}={shown(value)} must be a size"
    )
    return int(value)  # pyrefly: ignore[bad-argument-type]


def _number(
    values: Mapping[str, Any], name: str, where: Path, default: float | None = None
) -> float:
    value = values.get(name)
    value = default if value is None else value
    require(value is not None, f"{where}: {name} is missing")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    require(
        number and 0 < value < 1e18,  # pyrefly: ignore[unsupported-operation]
        f"{where}: {name}={shown(value)} must be a positive number",
    )
    return float(value)  # pyrefly: ignore[bad-argument-type]


def to_hf(
    c: ModelConfig, bos: int = 1, eos: int | list[int] = 2
) -> tuple[dict[str, Any], list[str]]:
    """config.json for our configuration, with rotary settings in both spellings, and notes for the
    report.

    Both are written because transformers 4 does not know `rope_parameters` and 5 reads it first.
    """
    notes = []
    theta = c.rope_theta
    rope: dict[str, Any] = {"rope_type": "default"}
    if c.rope_scaling == "ntk":  # is but another base, see ops/rope.py
        theta *= c.rope_factor ** (c.head_dim / (c.head_dim - 2))
        notes.append(f"NTK-aware scaling by {c.rope_factor:g} is written as rope_theta={theta!r}.")
    elif c.rope_scaling != "none":
        rope = {"rope_type": c.rope_scaling, "factor": c.rope_factor}
    if c.rope_scaling == "yarn":
        pretrained = c.pretrained_seq_len
        require(
            pretrained == int(pretrained),
            f"rope_factor={c.rope_factor} does not divide {c.max_seq_len} into a whole length, "
            "which Hugging Face needs",
        )
        rope["original_max_position_embeddings"] = int(pretrained)
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_seq_len,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "rope_parameters": {**rope, "rope_theta": theta},
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": c.param_dtype,
        "dtype": c.param_dtype,
        "use_cache": True,
    }
    return values, notes
