"""Exchanges values between the processes of a run, one per host."""

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from omni_jax.sharding import one_per_device

_largest = jax.jit(jnp.max)


def any_process(flag: bool, mesh: Mesh) -> jax.Array:
  """Returns an array that is nonzero if `flag` is true in any process.

  All processes have to call it at the same points. It is computed on the devices:
  reading it waits for all the work that was queued there before.
  """
  flags = np.full((jax.local_device_count(),), flag, np.int32)
  sharding = one_per_device(mesh)
  return _largest(jax.make_array_from_process_local_data(sharding, flags))


def gather_bytes(data: bytes) -> list[bytes]:
  """Returns the bytes of all processes, in every process.

  After `train.processes.disband`, each process gets only its own.
  """
  if jax.process_count() == 1 or not jax.distributed.is_initialized():
    return [data]
  lengths = multihost_utils.process_allgather(np.int32(len(data)))
  padded = np.zeros(lengths.max(), np.uint8)
  padded[: len(data)] = np.frombuffer(data, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [row[:n].tobytes() for row, n in zip(rows, lengths, strict=True)]
