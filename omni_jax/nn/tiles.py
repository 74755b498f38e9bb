"""Sizes of the tiles of TPU kernels."""

LANES = 128  # lanes of a TPU's vector registers; tiles are multiples of this


def tile(size: int, most: int) -> int:
  """Returns the largest multiple of the lanes, up to `most`, that divides a size.

  No tile is partly empty then. If there is none, it returns the smaller of size and
  `most`.
  """
  divisors = (t for t in range(most, 0, -LANES) if size % t == 0)
  return next(divisors, min(size, most))
