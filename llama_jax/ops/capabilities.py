"""Capabilities of each attention implementation, as data, and the platform of a program."""

import dataclasses
import math

import jax
from jax.sharding import PartitionSpec

from llama_jax.kernels.block_sizes import DTYPES, HEAD_WIDTHS, VMEM, generation


class Unsupported(ValueError):
    """The named implementation cannot do what is asked; the message holds the values."""


@dataclasses.dataclass(frozen=True)
class Capability:
    """The abilities of one implementation on one kind of device."""

    dtypes: tuple[str, ...]
    head_widths: tuple[int, ...] = ()
    """Supported H; empty for any."""
    offsets: bool = True
    """Queries may start at any position, even one known only at run time."""
    segments: bool = True
    """Documents are supported; for the kernels, the keys of one must be contiguous, as in packed
    rows."""
    gradients: bool = True


ANY = Capability(dtypes=("float32", "bfloat16", "float16"))
FLASH = Capability(dtypes=DTYPES, head_widths=HEAD_WIDTHS)
CUDNN = Capability(
    dtypes=("bfloat16", "float16"), head_widths=tuple(range(8, 129, 8)), offsets=False
)
RING = dataclasses.replace(FLASH, offsets=False)
DECODE = dataclasses.replace(FLASH, segments=False, gradients=False)

TPU_GENERATIONS = tuple(VMEM)
# Device -> implementation. "ring" is what "pallas" means where a mesh splits the sequence, "decode"
# what it means for a few tokens against a cache. On a CPU the kernels are interpreted.
_KERNELS = {"pallas": FLASH, "ring": RING, "decode": DECODE}
CAPABILITIES: dict[str, dict[str, Capability]] = {
    "cpu": {"xla": ANY, **_KERNELS},
    "gpu": {"xla": ANY, "cudnn": CUDNN},
    **{generation: {"xla": ANY, **_KERNELS} for generation in TPU_GENERATIONS},
}


def device() -> str:
    """The platform that the program is for: a key of CAPABILITIES, or the name of another TPU.

    It is that of the mesh in scope, which may be of a topology that this machine lacks, else of the
    default device. Pallas needs to know the TPU at this point too, so it cannot be left open.
    """
    mesh_device = jax.sharding.get_abstract_mesh().abstract_device
    kind = jax.devices()[0].device_kind if mesh_device is None else mesh_device.device_kind
    if kind.startswith("TPU"):
        return generation() or kind
    return "cpu" if kind == "cpu" else "gpu"


def problem(name: str, device: str, dtype: str, H: int, *, offset: bool, segments: bool) -> str:
    """The reason why implementation `name` cannot do this on `device`, with the values; empty if it
    can.

    `offset`: the queries do not start at position 0. `segments`: there are documents.
    """
    here = CAPABILITIES.get(device, {"xla": ANY})
    if name not in here:
        where = [d for d, able in CAPABILITIES.items() if name in able]
        return f"it is made for {', '.join(where)}, not {device}"
    able = here[name]
    if dtype not in able.dtypes:
        return f"it takes {', '.join(able.dtypes)}, not {dtype}"
    if able.head_widths and H not in able.head_widths:
        near = min(able.head_widths, key=lambda width: abs(width - H))
        return f"it has no head width {H=}; the nearest is {near}"
    if offset and not able.offsets:
        return "its queries start at position 0"
    if segments and not able.segments:
        return "it takes no segment ids"
    return ""


def devices(entry: str | tuple[str, ...] | None) -> int:
    """Number of devices that one entry of a PartitionSpec splits an axis over, on the mesh in
    scope."""
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[name] for name in names)


def split_problem(spec: PartitionSpec | None, *, B: int, N: int, K: int) -> str:
    """The reason why q [B,T,N,H] cannot be split by rows and heads as in `spec`; empty if it
    can."""
    if spec is None:
        return ""
    for letter, size, entry in (("B", B, spec[0]), ("N", N, spec[2]), ("K", K, spec[2])):
        if size % devices(entry):
            return f"{letter}={size} is not divisible by the {devices(entry)} devices of {entry!r}"
    return ""
