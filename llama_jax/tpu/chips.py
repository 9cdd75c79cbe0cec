"""The TPU generations: one table of published figures for the planner and the kernel schedules.

Sources, all pages under cloud.google.com/tpu/docs: v4, v5e, v5p and v6e (peak, HBM, links).
A page gives the chip-to-chip bandwidth of all links of a chip together, one way in Gbit/s (v4 2400,
v5e 1600, v5p 4800) or both ways in GB/s (v6e 800); a link is one direction of one torus axis, of
which a chip has four (v5e, v6e) or six (v4, v5p). The data-centre network: v5e 6.4 Tbit/s for a pod
of 256 chips, v6e four times that, v4 and v5p 200 Gbit/s for a host of four chips. Matrix units:
four of 128 x 128 a core up to v5p, on v6e two of 256 x 256 that take two rows a cycle
(jax/_src/tpu_info.py, and the busy slots of the schedules). HBM is what the compiler says is
available when a program asks for more.
"""

import dataclasses

GiB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU generation; figures are per chip unless said otherwise."""

    topology: str
    """Smallest slice that libtpu knows."""
    cores: int
    """TensorCores; a kernel's parallel grid axes are split over them."""
    macs_per_cycle: int
    """Multiply-adds of all matrix units of one core."""
    bf16_flops: float
    """Peak, per second."""
    hbm_bytes: int
    """What a program may allocate."""
    hbm_bytes_per_second: float
    link_bytes_per_second: float
    """One chip-to-chip link, one way."""
    network_bytes_per_second: float
    """Its share of the host's data-centre network, one way; joins slices."""
    largest: tuple[int, ...]
    """Chips along each torus axis of the largest slice."""
    rows_per_cycle: int = 1
    """Rows of an operand that one matrix unit takes."""

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.bf16_flops / (2 * self.cores * self.macs_per_cycle)

    @property
    def counts_cores(self) -> bool:
        """Whether the number in a slice's name, as in v5p-128, is that of its TensorCores."""
        return self.cores == 2


MXU = 128 * 128
CHIPS = {
    "v4": Chip(
        "v4:2x2x1", 2, 4 * MXU, 275e12, int(30.75 * GiB), 1228e9, 50e9, 6.25e9, (12, 16, 16)
    ),
    "v5e": Chip("v5e:2x2", 1, 4 * MXU, 197e12, int(15.75 * GiB), 819e9, 50e9, 3.125e9, (16, 16)),
    "v5p": Chip(
        "v5p:2x2x1", 2, 4 * MXU, 459e12, int(95.73 * GiB), 2765e9, 100e9, 6.25e9, (16, 20, 28)
    ),
    "v6e": Chip(
        "v6e:2x2", 1, 16 * MXU, 918e12, int(31.24 * GiB), 1640e9, 100e9, 12.5e9, (16, 16), 2
    ),
}
