"""Peak FLOP/s, memory and networks of each kind of chip, in one table.

Sources: Google's pages docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read in
2026. They state the bandwidth between chips as the sum over both directions of all
links, so one direction of a link has that / links / 2; for v4 it follows from the
pod's all-reduce bandwidth (1.1 PB/s / 4096 chips / 6 links). The memory available to a
program is the limit in libtpu 0.0.42.1's error message for a program that does not
fit; libtpu reserves the rest. The figures of GPUs serve only to compute the MFU.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Describes one kind of chip.

  Attributes:
    kind: prefix of jax's `device_kind`.
    flops: peak dense bf16 FLOP/s.
    hbm: bytes of memory that a program can use.
    hbm_rate: bytes/s between memory and compute units.
    link: bytes/s of one link between chips, in one direction.
    dcn: bytes/s of the data center network, per chip and direction.
    sides: number of dimensions of the torus; a chip has two links along each.
    ring: a dimension whose length is a multiple of this wraps around into a ring; any
      other is a line.
    devices: number of jax devices per chip (one per core unless the cores are fused).
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

  @property
  def device_flops(self) -> float:
    """Peak dense bf16 FLOP/s of one jax device."""
    return self.flops / self.devices


# The page of v4 gives no bandwidth of the data center network, so that of v5p is used.
# libtpu describes v4 and tpu7x as two devices per chip.
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
  # Half of the 120 GFLOP/s (fp32) quoted for two cores of the README's machine. 4 GiB
  # and slow links let the arithmetic for real chips run on simulated ones.
  'cpu': Chip('cpu', 60e9, 4 * GIB, 10e9, 1e9, 1e8, sides=1),
}


def chip_of(device_kind: str) -> Chip | None:
  """Returns the chip of a jax `device_kind`; None if the table does not have it."""
  matches = [chip for chip in CHIPS.values() if device_kind.startswith(chip.kind)]
  # 'TPU v5' is a prefix of 'TPU v5 lite', too: the longest match is the right one.
  return max(matches, key=lambda chip: len(chip.kind), default=None)


def peak_flops(device_kind: str) -> float | None:
  """Returns the peak bf16 FLOP/s of one jax device; None for an unknown kind."""
  chip = chip_of(device_kind)
  return None if chip is None else chip.device_flops
