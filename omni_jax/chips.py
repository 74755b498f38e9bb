"""What a chip can do: peak FLOP/s, memory and networks, one row a kind; the only place with such figures.

Sources: Google's pages docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read in 2026. They state the bandwidth
between chips as the sum over both directions of all links, so a link's one direction is that / links / 2; for v4 it
follows from the pod's all-reduce bandwidth (1.1 PB/s / 4096 chips / 6 links). Memory that a program can use is what
libtpu 0.0.42.1 says in its message that a program does not fit; it keeps the rest. Figures of GPUs are for MFU only.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of chip.

  Attributes:
    kind: beginning of jax's `device_kind`.
    flops: dense bf16 FLOP/s.
    hbm: bytes of memory that a program can use.
    hbm_rate: bytes/s between memory and compute units.
    link: bytes/s of one link between chips, in one direction.
    dcn: bytes/s of the data center network, per chip and direction.
    sides: of the torus; a chip has two links along each.
    ring: a side of a multiple of this many chips closes to a ring, a shorter one is a line.
    devices: that jax makes of a chip (one per core where the cores are not joined).
  """

  kind: str
  flops: float
  hbm: float = 0.0
  hbm_rate: float = 0.0
  link: float = 0.0
  dcn: float = 0.0
  sides: int = 0
  ring: int = 1
  devices: int = 1


# v4's page states no data center network: v5p's is taken. libtpu describes v4 and tpu7x as two devices a chip.
CHIPS = {
  'v4': Chip(
    'TPU v4', 275e12, 30.5 * GIB, 1200e9, 45e9, 6.25e9, sides=3, ring=4, devices=2
  ),
  'v5e': Chip(
    'TPU v5 lite', 197e12, 15.75 * GIB, 819e9, 50e9, 3.125e9, sides=2, ring=16
  ),
  'v5p': Chip('TPU v5', 459e12, 95.74 * GIB, 2765e9, 100e9, 6.25e9, sides=3, ring=4),
  'v6e': Chip(
    'TPU v6 lite', 918e12, 31.25 * GIB, 1638e9, 100e9, 12.5e9, sides=2, ring=16
  ),
  'tpu7x': Chip(
    'TPU7x', 2307e12, 189.5 * GIB, 7380e9, 100e9, 12.5e9, sides=3, ring=4, devices=2
  ),
  'h100': Chip('NVIDIA H100', 989e12),
  'h200': Chip('NVIDIA H200', 989e12),
  # Half of the 120 GFLOP/s (fp32) that two cores of the README's machine are said to reach; 4 GiB and slow links, so
  # that the arithmetic for real chips can be tried on pretended ones.
  'cpu': Chip('cpu', 60e9, 4 * GIB, 10e9, 1e9, 1e8, sides=1),
}


def chip_of(device_kind: str) -> Chip | None:
  """The row of a device's kind; None where there is none."""
  found = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
  return max(found, key=lambda chip: len(chip.kind), default=None)


def peak_flops(device_kind: str) -> float | None:
  """Peak of a device by its kind; None where it is not known."""
  chip = chip_of(device_kind)
  return chip and chip.flops / chip.devices
