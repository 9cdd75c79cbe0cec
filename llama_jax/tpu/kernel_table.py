"""`llama-jax kernels`: prints the kernel report as a table, and explains its columns."""

import importlib.util

from llama_jax.config import InputError, require

# Name in the report -> heading, unit or format, meaning.
COLUMNS = {
    "kernel": ("kernel", "", "ours, jax's splash attention, or tokamax's where it is installed"),
    "direction": ("pass", "", "forward; backward: dq, dk and dv together; decode: one token a row"),
    "masks": ("masks", "", "causal; packed: 16 documents of 256; valid: 8 rows of a cache"),
    "model": ("model", "", "heads of Llama 2 7B (32/32) or 70B (64/8)"),
    "blocks": ("blocks", "", "queries / keys / inner piece of a tile, the best that was found"),
    "cycles": ("cycles", ",", "of one chip: bundles times visits, or what products need at peak"),
    "microseconds": ("us", ",.0f", "the same at the chip's clock"),
    "memory_microseconds": ("memory us", ",.0f", "bytes in and out over the bandwidth of HBM"),
    "share_of_peak": ("peak", ".0%", "useful multiply-adds against the matrix units' peak"),
    "matmul": ("matmul", ".0%", "used slots of the matrix units in the executed bundles"),
    "matmul_text": ("text", ".0%", "the same in the kernel's whole text, each bundle once"),
    "valu": ("vector", ".0%", "the same of the vector units"),
    "vload": ("load", ".0%", "the same of vector loads, fills included"),
    "vstore": ("store", ".0%", "the same of vector stores, spills included"),
    "spills": ("spills", ",", "slots that spill registers, in the text of the kernel"),
    "bundles": ("bundles", ",", "length of that text"),
    "vmem_bytes": ("VMEM MiB", ".1f", "blocks, scratch and spills"),
    "over_visited": ("/visited", ".2f", "ours, packed: cycles over those of its visited tiles"),
    "moved_over_valid": ("/valid", ".3f", "decode: bytes of the cache moved, over the valid ones"),
}  # fmt: skip

HELP = "\n".join(
    [
        "Compiles our attention kernels and those they are measured against with libtpu, which",
        "needs no TPU, and reads the final schedule: bundles of instructions, one a cycle when",
        "nothing stalls. One row of 4096 tokens in one layer, bfloat16, H = 128, on one chip.",
        "Takes about ten seconds a kernel.",
        "",
        "columns:",
        *(f"  {heading:<10} {meaning}" for heading, _, meaning in COLUMNS.values()),
        "",
        "What a schedule cannot show: waits for memory (compare `us` with `memory us`), stalls of",
        "full queues, and how often a loop runs that depends on the data: visits are counted for",
        "the masks and lengths above.",
    ]
)


def report(topology: str) -> tuple[list[dict], list[str]]:
    """`kernel_report.kernel_report` for a generation (v5e) or a slice of it (v5e-256, v5e:16x16).

    Raises:
      InputError: the generation is unknown, or libtpu is not installed.
    """
    from llama_jax.kernels.block_sizes import VMEM
    from llama_jax.tpu.kernel_report import kernel_report
    from llama_jax.tpu.topology import ALIASES

    name = topology.replace(":", "-").split("-")[0]
    generation = ALIASES.get(name, name)
    require(
        generation in VMEM, f"--topology {topology} must be one of {', '.join(VMEM)} or a slice"
    )
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "kernels are compiled with libtpu, which is not installed (x86-64 Linux has it): "
            "pip install libtpu"
        )
    return kernel_report(generation)


def table(rows: list[dict]) -> str:
    """The report in columns, kernels to compare below each other."""
    order = sorted(
        rows, key=lambda r: (r["masks"], r["model"], r["direction"] != "forward", r["cycles"])
    )
    lines = [[heading for heading, *_ in COLUMNS.values()]]
    for row in order:
        values = {**row, "vmem_bytes": row["vmem_bytes"] / 2**20}
        lines.append(
            [
                "" if values[name] is None else format(values[name], kind)
                for name, (_, kind, _) in COLUMNS.items()
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = 5  # columns of words, to the left; numbers to the right
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < text else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
