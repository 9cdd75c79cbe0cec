"""Guards interpreted kernels, so that they are lowered for CPUs only.

Whether a kernel is interpreted is decided by the device when a function is traced, and the program
can later be lowered for another one (`jax.jit(f).trace(...).lower(lowering_platforms=("tpu",))`).
There the interpreted kernel would compute the same a thousand times slower, unnoticed.
"""

from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array

from llama_jax.ops.capabilities import Unsupported

_mark = Primitive("interpreted_kernel")
_mark.def_impl(lambda x: x)
_mark.def_abstract_eval(lambda x: x)
batching.primitive_batchers[_mark] = lambda args, axes: (_mark.bind(*args), axes[0])


def _refuse(ctx: Any, x: Any) -> Any:
    platforms = ", ".join(ctx.platforms or ctx.module_context.platforms)
    raise Unsupported(
        f"this program was traced for a CPU, where kernels are interpreted, and is lowered for "
        f"{platforms}: trace it with the mesh of its devices in scope, as "
        "jax.sharding.use_abstract_mesh sets it"
    )


mlir.register_lowering(_mark, _refuse)
mlir.register_lowering(_mark, lambda ctx, x: [x], platform="cpu")


def interpreted(x: Array) -> Array:
    """Returns x, and restricts the program that contains it to CPUs.

    Lowering for another platform then raises Unsupported.
    """
    return _mark.bind(x)
