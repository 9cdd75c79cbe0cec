"""A small training state with every kind of leaf, saved in a run folder."""

import shutil
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax.checkpoint import Checkpointer


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any


def sharding(devices: int, spec: P) -> NamedSharding:
    mesh = jax.make_mesh(
        (devices,), ("a",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    return NamedSharding(mesh, spec)


def make_state(seed: int = 0, devices: int = 8) -> State:
    """A training state: two sharded matrices, a replicated bfloat16 vector, an empty array."""
    rng = np.random.default_rng(seed)
    split, whole = sharding(devices, P("a")), sharding(devices, P())
    params = {
        "layers": {"q": jax.device_put(rng.standard_normal((16, 512), np.float32), split)},
        "head": jax.device_put(rng.standard_normal((8, 24), np.float32), split),
        "norm": jax.device_put(jnp.asarray(rng.standard_normal(5), jnp.bfloat16), whole),
        "none": jax.device_put(jnp.zeros((0, 4)), whole),
    }
    opt_state = optax.adamw(1e-3).init(params)
    return State(jax.device_put(jnp.int32(seed), whole), params, opt_state)


def abstract(tree: Any, devices: int | None = None) -> Any:
    """ShapeDtypeStructs laid out over `devices` (None: NumPy arrays)."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        if devices is None:
            return jax.ShapeDtypeStruct(x.shape, x.dtype)
        spec = P("a") if x.ndim and x.size and x.shape[0] % devices == 0 else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(devices, spec))

    return jax.tree.map(one, tree)


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save(directory: Path, steps: list[int], **kwargs: Any) -> None:
    with Checkpointer(directory, keep=kwargs.pop("keep", 9), **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"data": f"fingerprint {step}"})


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run folder with the steps 1 and 2."""
    run = tmp_path_factory.mktemp("saved") / "run"
    save(run / "checkpoints", [1, 2])
    return run


@pytest.fixture
def run(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))
