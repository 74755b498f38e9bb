"""Size limits of encoded files of all media: bytes from outside are never trusted."""

from omni_jax.errors import BadRecord

MAX_BYTES = 64 << 20  # of one encoded file


def check_bytes(size: int) -> None:
  """Refuses a file of more than `MAX_BYTES` bytes.

  Raises:
    BadRecord: if the file is too large.
  """
  if size > MAX_BYTES:
    raise BadRecord(f'has {size:,} bytes, more than the {MAX_BYTES:,} allowed')


def check_size(data: bytes) -> None:
  """Refuses a file that is empty or too large.

  Raises:
    BadRecord: if the file is empty or too large.
  """
  if not data:
    raise BadRecord('file is empty')
  check_bytes(len(data))
