"""config.json of model folders and run folders: any config dataclass to JSON and back.

Reading checks every key and type: a damaged or foreign file gives a one-line error with the key.
"""

import dataclasses
import json
import types
import typing
from typing import Any, Literal

from llama_jax.config import ModelConfig, QuantizedModel, TrainConfig, require
from llama_jax.config_align import ALIGNMENT
from llama_jax.runtime.files import read_json, shown
from llama_jax.runtime.places import expand

FORMAT_VERSION = 1
"""Version of a model folder's config.json."""
MAX_BYTES = 1 << 20
"""Size limit of a config.json; ours have 3 kB."""
STAGES = {kind.stage: kind for kind in (TrainConfig, *ALIGNMENT)}
"""The class of a run's experiment, by its stage."""


def to_json(config: Any) -> str:
    """Any config dataclass as indented JSON, keys in field order.

    An experiment of another stage than pretraining has its `stage` first.
    """
    stage = getattr(config, "stage", TrainConfig.stage)
    said = {} if stage == TrainConfig.stage else {"stage": stage}
    return json.dumps(said | dataclasses.asdict(config), indent=2) + "\n"


def from_dict[C](cls: type[C], values: Any, where: str = "config") -> C:
    """The config dataclass `cls` from parsed JSON; InputError names unknown and missing keys."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    require(isinstance(values, dict), f"{where} must be a JSON object, not {shown(values)}")
    unknown = sorted(set(values) - set(fields))
    require(not unknown, f"{where} has unknown keys {shown(unknown)}; known are {sorted(fields)}")
    missing = sorted(
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    )
    require(not missing, f"{where} lacks {missing}")
    return cls(**{k: _convert(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def read_config(folder: Any) -> tuple[ModelConfig, TrainConfig | None]:
    """The content of config.json: of a model folder the model; of a run folder the model as it is
    saved, and the experiment.

    Raises:
      InputError: there is none, it is no JSON, or its keys or values do not fit.
    """
    from etils import epath  # gs:// paths too

    file = epath.Path(expand(folder)) / "config.json"
    require(
        file.exists(), f"{folder} is neither a model folder nor a run folder: it has no config.json"
    )
    values = read_json(file, limit=MAX_BYTES)
    if "model" in values:
        stage = values.pop("stage", TrainConfig.stage)
        known = isinstance(stage, str) and stage in STAGES
        require(known, f"{file}: stage {shown(stage)} is unknown; known are {sorted(STAGES)}")
        config = from_dict(STAGES[stage], values, str(file))
        return config.saved_model, config
    version = values.pop("format_version", None)
    require(
        version == FORMAT_VERSION,
        f"{file} has format_version {shown(version)}; this program reads {FORMAT_VERSION}",
    )
    kind = QuantizedModel if "quant" in values else ModelConfig
    return from_dict(kind, values, str(file)), None


def model_json(config: ModelConfig) -> str:
    """The config.json of a model folder."""
    values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(config)}
    return json.dumps(values, indent=2) + "\n"


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one JSON value against a field's type; tuples come back from lists."""
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        require(isinstance(value, (list, tuple)), f"{where}={shown(value)} must be a list")
        hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        require(len(value) == len(hints), f"{where}={shown(value)} must have {len(hints)} values")
        return tuple(_convert(hints[i], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Literal:
        known = isinstance(value, str) and value in args
        require(known, f"{where}={shown(value)} must be one of {', '.join(map(str, args))}")
        return value
    kinds = args if origin in (types.UnionType, typing.Union) else (hint,)
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(not whole or abs(value) < 2**63, f"{where}={shown(value)} is too large a number")
    if float in kinds and whole:
        return float(value)
    matches = any(type(value) is kind for kind in kinds)
    names = " or ".join(kind.__name__ for kind in kinds)
    require(matches, f"{where}={shown(value)} must be of type {names}")
    return value
