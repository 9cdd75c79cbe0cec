"""A mark on kernels that are interpreted: they are lowered for CPUs and nothing else.

Which it will be is decided when a function is traced, by the device then, and programs can be
lowered for another one later (`jax.jit(f).trace(...).lower(lowering_platforms=("tpu",))`). The
interpreted kernel would compute the same there, a thousand times slower, and nobody would know.
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
    """x; a program that holds it is lowered for CPUs alone.

    Raises, then, Unsupported for another platform.
    """
    return _mark.bind(x)
