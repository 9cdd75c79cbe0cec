"""The TPU generations: one table of published figures for the planner and the kernel schedules.

Sources, all pages under cloud.google.com/tpu/docs: v2, v3, v4, v5e, v5p, v6e and tpu7x (peak, HBM,
links). A page gives the chip-to-chip bandwidth of all links of a chip together, one way in Gbit/s
(v4 2400, v5e 1600, v5p 4800) or both ways in GB/s (v6e 800, tpu7x 1200); a link is one direction of
one torus axis, of which a chip has four (v2, v3, v5e, v6e) or six (v4, v5p, tpu7x). Those of v2 and
v3 are 496 and 656 Gbit/s each (Norrie et al. 2021, "The Design Process for Google's Training
Chips"). The data-centre network: v5e 6.4 Tbit/s for a pod of 256 chips, v6e four times that, v4 and
v5p 200 Gbit/s for a host of four chips, tpu7x 100 Gbit/s a chip. Matrix units of 128 x 128: one a
core on v2, two on v3, four up to v5p; on v6e and tpu7x two of 256 x 256 that take two rows a cycle
(jax/_src/tpu_info.py, and the busy slots of the schedules). HBM is what the compiler says is
available when a program asks for more. Between the two dies of a tpu7x chip lie six times the bytes
of a link.

Estimates, for which no public figure was found: the network of v2 and v3, and what passes between
the two cores of one of their chips.
"""

import dataclasses

from llama_jax.parallel.devices import PEAK_FLOPS

GiB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU generation; figures are per chip unless said otherwise."""

    topology: str
    """A slice of four chips, used for compiling."""
    cores: int
    """TensorCores."""
    macs_per_cycle: int
    """Multiply-adds of all matrix units of one core."""
    bf16_flops: float
    """Peak, per second."""
    hbm_bytes: int
    """Bytes that a program may allocate."""
    hbm_bytes_per_second: float
    link_bytes_per_second: float
    """One chip-to-chip link, one way."""
    network_bytes_per_second: float
    """Its share of the host's data-centre network, one way; joins slices."""
    largest: tuple[int, ...]
    """Chips along each torus axis of the largest slice."""
    rows_per_cycle: int = 1
    """Rows of an operand that one matrix unit takes per cycle."""
    devices: int = 1
    """Devices that jax sees per chip. One device of two cores splits a kernel's parallel grid
    axes."""
    between_devices: float = 0.0
    """Bytes per second from one device of a chip to the other."""

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
    "v2": Chip(
        topology="v2:2x2",
        cores=2,
        macs_per_cycle=MXU,
        bf16_flops=2 * PEAK_FLOPS["TPU v2"],
        hbm_bytes=2 * int(7.48 * GiB),
        hbm_bytes_per_second=700e9,
        link_bytes_per_second=62e9,
        network_bytes_per_second=3.125e9,
        largest=(16, 16),
        devices=2,
        between_devices=350e9,
    ),
    "v3": Chip(
        topology="v3:2x2",
        cores=2,
        macs_per_cycle=2 * MXU,
        bf16_flops=2 * PEAK_FLOPS["TPU v3"],
        hbm_bytes=2 * int(15.48 * GiB),
        hbm_bytes_per_second=900e9,
        link_bytes_per_second=82e9,
        network_bytes_per_second=3.125e9,
        largest=(32, 32),
        devices=2,
        between_devices=450e9,
    ),
    "v4": Chip(
        topology="v4:2x2x1",
        cores=2,
        macs_per_cycle=4 * MXU,
        bf16_flops=PEAK_FLOPS["TPU v4"],
        hbm_bytes=int(30.75 * GiB),
        hbm_bytes_per_second=1228e9,
        link_bytes_per_second=50e9,
        network_bytes_per_second=6.25e9,
        largest=(12, 16, 16),
    ),
    "v5e": Chip(
        topology="v5e:2x2",
        cores=1,
        macs_per_cycle=4 * MXU,
        bf16_flops=PEAK_FLOPS["TPU v5 lite"],
        hbm_bytes=int(15.75 * GiB),
        hbm_bytes_per_second=819e9,
        link_bytes_per_second=50e9,
        network_bytes_per_second=3.125e9,
        largest=(16, 16),
    ),
    "v5p": Chip(
        topology="v5p:2x2x1",
        cores=2,
        macs_per_cycle=4 * MXU,
        bf16_flops=PEAK_FLOPS["TPU v5"],
        hbm_bytes=int(95.73 * GiB),
        hbm_bytes_per_second=2765e9,
        link_bytes_per_second=100e9,
        network_bytes_per_second=6.25e9,
        largest=(16, 20, 28),
    ),
    "v6e": Chip(
        topology="v6e:2x2",
        cores=1,
        macs_per_cycle=16 * MXU,
        bf16_flops=PEAK_FLOPS["TPU v6 lite"],
        hbm_bytes=int(31.24 * GiB),
        hbm_bytes_per_second=1640e9,
        link_bytes_per_second=100e9,
        network_bytes_per_second=12.5e9,
        largest=(16, 16),
        rows_per_cycle=2,
    ),
    "tpu7x": Chip(
        topology="tpu7x:2x2x1",
        cores=2,
        macs_per_cycle=16 * MXU,
        bf16_flops=2 * PEAK_FLOPS["TPU7x"],
        hbm_bytes=2 * int(94.74 * GiB),
        hbm_bytes_per_second=7380e9,
        link_bytes_per_second=100e9,
        network_bytes_per_second=12.5e9,
        largest=(16, 16, 36),
        rows_per_cycle=2,
        devices=2,
        between_devices=600e9,
    ),
}
