"""Places numbered rows in one of two processes with two devices each.

test_two_processes.py starts it with the coordinator's address and the process index.
"""

import sys

import jax
import numpy as np

address, index = sys.argv[1:]
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(address, 2, int(index))

from omni_jax.across_processes import any_process  # noqa: E402
from omni_jax.errors import UserError  # noqa: E402
from omni_jax.sharding import make_mesh, place, process_part  # noqa: E402

MESHES = [dict(data=4), dict(data=2, tensor=2), dict(tensor=4), dict(data=2, context=2)]
ALL_ROWS = np.arange(8.0)

for sizes in MESHES:
  mesh = make_mesh(sizes)
  part, count = process_part(mesh)
  own_rows = ALL_ROWS[part * 8 // count : (part + 1) * 8 // count]
  placed = place(own_rows, mesh)
  assert placed.shape == (8,), (sizes, placed.shape)
  for shard in placed.addressable_shards:
    expected = ALL_ROWS[shard.index]
    np.testing.assert_array_equal(shard.data, expected, err_msg=str(sizes))
  print(sizes, part, count)
  assert not any_process(False, mesh)
  assert any_process(index == '1', mesh)
try:
  make_mesh(dict(data=2))
except UserError as error:
  print(error)
