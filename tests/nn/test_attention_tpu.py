"""Compiles attention for absent TPUs: it uses the Pallas kernel, without L×L logits."""

from functools import partial
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
import numpy as np
import pytest

from omni_jax import sharding
from omni_jax.compile.topology import describe
from omni_jax.nn.context_parallel import attend
from omni_jax.nn.reach import packed_rows

pytestmark = [
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="libtpu compiles for TPUs, and it is not installed: pip install 'jax[tpu]'",
  ),
  # Programs for absent devices cannot be read back from the cache.
  pytest.mark.filterwarnings('ignore:Error reading persistent compilation cache'),
]
L = 4096
H = 32
G = 8
A = 128
LOGITS = H * L * L * 4  # bytes in fp32: 2 GiB
ROW = 2 * L * H * A  # bytes of the queries in bf16; keys and values are a quarter each


def compile_row(topology, l=L, a=A, dtype=jnp.bfloat16, **sizes):
  """Returns the compiled program of the output and the gradients of a row."""
  shape = tuple(sizes.get(axis, 1) for axis in sharding.AXES)
  devices = np.array(describe(topology).devices[: math.prod(shape)]).reshape(shape)
  mesh = Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * len(shape))

  def spec(shape, dtype, *axes):
    placement = NamedSharding(mesh, sharding.spec(*axes))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placement)

  q = spec((1, l, H, a), dtype, 'batch', 'length', 'act_heads', None)
  k = spec((1, l, G, a), dtype, 'batch', 'length', 'act_heads', None)
  segment = spec((1, l), jnp.int32, 'batch', 'length')

  def output_and_gradients(q, k, v, segment, dy):
    y, vjp = jax.vjp(partial(attend, reach=packed_rows(segment), mesh=mesh), q, k, v)
    return y, vjp(dy)

  with jax.set_mesh(mesh):
    # A value has the shape of a key, and `dy` that of a query.
    return jax.jit(output_and_gradients).lower(q, k, k, segment, q).compile()


@pytest.mark.parametrize(
  'sizes', [{}, dict(context=4), dict(tensor=2, context=2)], ids=str
)
@pytest.mark.parametrize('topology', ['v5p:2x2x1', 'v5e:2x2', 'v6e:2x2'])
def test_the_kernel_is_used_and_no_logits_are_stored(topology, sizes):
  """Temporaries are of the size of the queries (33 MB).

  They are q and y with heads first, and the logsumexp in 128 lanes of fp32.
  """
  program = compile_row(topology, **sizes)
  text = program.as_text()
  # One call for the forward pass, one for dq, and one for dk and dv.
  assert len(re.findall(r'custom_call_target="tpu_custom_call"', text)) == 3
  temporary = program.memory_analysis().temp_size_in_bytes
  assert temporary < 8 * ROW / math.prod(sizes.values()) < LOGITS / 7, temporary
  assert not re.search(rf'\[[\d,]*{L},{L}[\d,]*\]', text)


def test_positions_over_devices_exchange_keys_once_and_queries_by_halves():
  text = compile_row('v5p:2x2x1', context=4).as_text()
  expected = {
    'all-gather': 3,
    'reduce-scatter': 2,
    'collective-permute': 8,
    'all-to-all': 0,
  }
  counts = {}
  for name in expected:
    counts[name] = len(re.findall(rf' {name}(?:-start)?\(', text))
  assert counts == expected


@pytest.mark.parametrize(
  'a, dtype', [(64, jnp.bfloat16), (256, jnp.bfloat16), (128, jnp.float32)], ids=str
)
def test_the_kernel_takes_other_widths_and_fp32(a, dtype):
  assert 'tpu_custom_call' in compile_row('v5e:2x2', 1024, a, dtype).as_text()


def test_a_length_that_the_kernel_does_not_take_is_split_into_pieces():
  program = compile_row('v5e:2x2', 4000)
  assert 'tpu_custom_call' not in program.as_text()
  assert program.memory_analysis().temp_size_in_bytes < LOGITS / 4
