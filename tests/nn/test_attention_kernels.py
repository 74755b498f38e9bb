"""Every kernel equals the reference, gradients included, on one device and every mesh.

The choice between the kernels is tested as well.
"""

from functools import partial
import math
import types

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask_info as splash_mask_info,
)
import jax.numpy as jnp
import numpy as np
import pytest
from samples import mark_long_except

from omni_jax.nn import attention_kernels
from omni_jax.nn.attention_kernels import choose, in_pieces, Kernel
from omni_jax.nn.context_parallel import attend, balanced_positions
from omni_jax.nn.reach import attention_reference, cached, packed_rows, within
from omni_jax.sharding import make_mesh

B = 2
H = 4
G = 2
A = 128


def qkv(l, s=None, b=B, h=H, g=G, a=A, dtype=jnp.float32):
  """Returns random queries, keys and values; by default as many keys as queries."""
  s = s or l
  return [
    jax.random.normal(jax.random.key(0), (b, l, h, a), dtype),
    jax.random.normal(jax.random.key(1), (b, s, g, a), dtype),
    jax.random.normal(jax.random.key(2), (b, s, g, a), dtype),
  ]


def packed_segments(l, b=B):
  """Returns the segments of rows of three examples, with padding behind them.

  Borders lie inside tiles, and the last row is nearly empty.
  """
  segment = np.zeros((b, l), np.int32)
  for row, ends in enumerate(np.linspace([0.1, 0.4, 0.9], [0.01, 0.02, 0.03], b)):
    start = 0
    for number, end in enumerate(ends, start=1):
      stop = int(end * l)
      segment[row, start:stop] = number
      start = stop
  return jnp.asarray(segment)


def with_gradients(attention, x):
  """Returns the output, and the gradients of a randomly weighted sum of it."""
  weight = jax.random.normal(jax.random.key(9), x[0].shape)

  def loss(*x):
    y = attention(*x)
    return (y * weight).sum(), y

  value_and_grad = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  (_, y), grads = jax.jit(value_and_grad)(*x)
  return y, *grads


def assert_equal(actual, expected, tolerance=2e-5):
  for name, a, b in zip(('y', 'dq', 'dk', 'dv'), actual, expected, strict=True):
    assert np.isfinite(a).all(), name
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
  'reach',
  [
    packed_rows(packed_segments(50)),
    within(packed_segments(50)),
    within(jnp.minimum(packed_segments(50), 1)),
  ],
  ids=['packed', 'items', 'one item'],
)
def test_in_pieces_equals_the_reference(reach):
  """This also holds if the last piece is not full; only the order of sums differs."""
  x = qkv(50, a=8)
  actual = with_gradients(partial(in_pieces, reach=reach, piece=16), x)
  expected = with_gradients(partial(attention_reference, reach=reach), x)
  assert_equal(actual, expected)


def test_in_pieces_reads_a_cache():
  slot = jnp.asarray([[3, 4, 5, 6, 7], [0, 1, 2, 30, 30]])
  q, k, v = qkv(5, 30, a=8)
  reach = cached(slot, 30)
  actual = in_pieces(q, k, v, reach, piece=2)
  expected = attention_reference(q, k, v, reach)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'sizes, l',
  [
    ({}, 384),
    (dict(context=2), 256),
    (dict(data=2, tensor=2, context=2), 256),
    (dict(context=4, tensor=2), 512),
  ],
  ids=str,
)
def test_splash_equals_the_reference(sizes, l):
  """Interprets the TPU's kernel.

  It gets packed rows with padding, grouped heads, and positions over devices. Over 512
  keys the softmax is summed tile by tile and rescaled, hence 2e-5 and not 2e-6.
  """
  x = qkv(l)
  segment = packed_segments(l)
  reach = packed_rows(segment)
  expected = with_gradients(partial(attention_reference, reach=reach), x)
  mesh = make_mesh(sizes)
  with jax.set_mesh(mesh):
    splash = partial(attend, reach=reach, mesh=mesh, kernel=Kernel.SPLASH)
    actual = with_gradients(splash, x)
  assert_equal(actual, expected)
  is_padding = np.asarray(segment) == 0
  for array in actual:
    at_padding = np.asarray(array)[is_padding]
    assert (at_padding == 0).all(), 'padding has an output or a gradient'


MESHES = [
  dict(data=8),
  dict(tensor=2),
  dict(tensor=4),
  dict(tensor=8),
  dict(context=2),
  dict(context=3),
  dict(context=8),
  dict(fsdp=2, expert=2, context=2),
  dict(data=2, tensor=2, context=2),
  dict(context=4, tensor=2),
]


@pytest.mark.parametrize('reach_of', [packed_rows, within], ids=['causal', 'items'])
@pytest.mark.parametrize('sizes', mark_long_except(MESHES, 2, 5, 7, 9), ids=str)
def test_every_mesh_equals_one_device(sizes, reach_of, monkeypatch):
  """Covers sizes that the mesh divides and sizes that it does not.

  The latter are two key heads over four devices, four query heads over eight, and 48
  positions over eight.
  """
  # Low enough that rows go in pieces where no axis splits their positions.
  monkeypatch.setattr(attention_kernels, 'MANY_LOGITS', 500)
  x = qkv(48, b=8, a=8)
  reach = reach_of(packed_segments(48, 8))
  mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
  with jax.set_mesh(mesh):
    actual = with_gradients(partial(attend, reach=reach, mesh=mesh), x)
  expected = with_gradients(partial(attention_reference, reach=reach), x)
  assert_equal(actual, expected)


@pytest.mark.parametrize(
  'sizes', [dict(data=8), dict(data=2, tensor=2, context=2), dict(context=8)], ids=str
)
@pytest.mark.parametrize('l', [1, 16])
def test_reading_a_cache_equals_the_reference_on_every_mesh(sizes, l):
  x = qkv(l, 24, b=3, a=8)
  mesh = make_mesh(sizes)
  reach = cached(jnp.arange(l)[None] + jnp.asarray([[3], [0], [7]]), 24)
  with jax.set_mesh(mesh):
    actual = jax.jit(partial(attend, reach=reach, mesh=mesh))(*x)
  expected = attention_reference(*x, reach)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('parts', [1, 2, 3, 4, 8])
def test_positions_are_distributed_evenly(parts):
  """Each occurs once, and all devices see equally many keys of a causal row."""
  position_NL = balanced_positions(48, parts)
  assert sorted(position_NL.ravel()) == list(range(48))
  assert len(set((position_NL + 1).sum(axis=1))) == 1


@pytest.mark.parametrize('parts', [1, 4])
def test_causal_tiles_describe_the_same_mask_as_the_whole_array(parts):
  position_NL = balanced_positions(2048, parts)
  tiles = attention_kernels.CausalTiles(position_NL.reshape(-1))
  whole_mask = splash_mask.CausalMask((2048, 2048))
  whole_mask.q_sequence = position_NL.reshape(-1)
  for process in (splash_mask_info.process_mask, splash_mask_info.process_mask_dkv):

    def mask_info(mask, process=process):
      heads = splash_mask.MultiHeadMask([mask] * 2)
      return process(heads, (128, 256), q_seq_shards=parts)[0]

    jax.tree.map(np.testing.assert_array_equal, mask_info(tiles), mask_info(whole_mask))


def shapes_of(l, s=None, a=128, dtype=jnp.bfloat16):
  """Returns the shapes of queries and keys."""
  queries = jax.ShapeDtypeStruct((1, l, 8, a), dtype)
  keys = jax.ShapeDtypeStruct((1, s or l, 2, a), dtype)
  return queries, keys


TPU = types.SimpleNamespace(platform='tpu')
CPU = types.SimpleNamespace(platform='cpu')
T4 = types.SimpleNamespace(platform='gpu', compute_capability='7.5')
A100 = types.SimpleNamespace(platform='gpu', compute_capability='8.0')
H100 = types.SimpleNamespace(platform='gpu', compute_capability='9.0')
B200 = types.SimpleNamespace(platform='gpu', compute_capability='10.0')
AMD = types.SimpleNamespace(platform='gpu', compute_capability='gfx942')
ONES = jnp.ones((1, 8), jnp.int32)
CAUSAL = packed_rows(ONES)
ITEMS = within(ONES)


@pytest.mark.parametrize(
  'device, shapes, reach, kernel',
  [
    (TPU, shapes_of(4096), CAUSAL, Kernel.SPLASH),
    (TPU, shapes_of(1024, 4096), CAUSAL, Kernel.SPLASH),
    (TPU, shapes_of(96), CAUSAL, Kernel.REFERENCE),
    (TPU, shapes_of(4000), CAUSAL, Kernel.PIECES),
    (TPU, shapes_of(4096), ITEMS, Kernel.PIECES),
    (CPU, shapes_of(4096), CAUSAL, Kernel.PIECES),
    (CPU, shapes_of(512), CAUSAL, Kernel.REFERENCE),
    (None, shapes_of(4096), CAUSAL, Kernel.PIECES),
    (A100, shapes_of(4096), ITEMS, Kernel.CUDNN),
    (A100, shapes_of(4096), CAUSAL, Kernel.CUDNN),
    (H100, shapes_of(4096), ITEMS, Kernel.CUDNN),
    (H100, shapes_of(4096), CAUSAL, Kernel.CUDNN_PACKED),
    (H100, shapes_of(131072), CAUSAL, Kernel.CUDNN_PACKED),
    (H100, shapes_of(1024, 4096), CAUSAL, Kernel.CUDNN),
    (H100, shapes_of(4096, dtype=jnp.float32), CAUSAL, Kernel.PIECES),
    (B200, shapes_of(4096), CAUSAL, Kernel.CUDNN_PACKED),
    (A100, shapes_of(4096, dtype=jnp.float32), CAUSAL, Kernel.PIECES),
    (A100, shapes_of(512, a=100), CAUSAL, Kernel.REFERENCE),
    (A100, shapes_of(16384), CAUSAL, Kernel.PIECES),
    (A100, shapes_of(1, 512), CAUSAL, Kernel.REFERENCE),
    (T4, shapes_of(4096), CAUSAL, Kernel.PIECES),
    (AMD, shapes_of(4096), CAUSAL, Kernel.PIECES),
  ],
)
def test_the_kernel_fits_device_and_shapes(device, shapes, reach, kernel):
  assert choose(device, *shapes, reach) is kernel


@pytest.fixture
def hopper(monkeypatch):
  """Lets jax lower cuDNN's attention as for an H100, without a GPU."""
  limits = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
  answers = dict(
    check_cudnn_version=91000,
    check_compute_capability=True,
    is_cuda_compute_capability_equal=False,
  )
  for name, answer in answers.items():
    monkeypatch.setattr(limits, name, lambda *_, answer=answer: answer)


def cudnn_calls(attend) -> list[str]:
  """Returns the calls of cuDNN in the gradient of an attention, lowered for CUDA."""
  x = qkv(256, a=64, dtype=jnp.bfloat16)
  total = lambda *x: attend(*x).astype(jnp.float32).sum()
  gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
  text = gradients.trace(*x).lower(lowering_platforms=('cuda',)).as_text()
  return [line for line in text.splitlines() if 'custom_call @__cudnn' in line]


def test_cudnn_gets_one_mask_for_all_heads_and_the_grouped_keys(hopper):
  reach = packed_rows(packed_segments(256))
  calls = cudnn_calls(partial(attention_kernels.cudnn, reach=reach))
  assert ['Backward' in line for line in calls] == [False, True]
  for line in calls:
    assert 'tensor<2x256x2x64xbf16>' in line
    assert 'tensor<2x1x256x256xbf16>' in line


def test_cudnn_gets_bounds_of_segments_instead_of_a_mask(hopper):
  bounds = attention_kernels.segment_bounds(packed_segments(256), 5)
  calls = cudnn_calls(partial(attention_kernels.cudnn_segments, bounds=bounds))
  assert ['Backward' in line for line in calls] == [False, True]
  for line in calls:
    assert 'tensor<2x256x2x64xbf16>' in line
    assert 'tensor<2x5xi32>, tensor<2x5xi32>, tensor<2x6xi32>' in line
    assert '256x256' not in line


def test_bounds_list_the_segments_of_every_row_and_its_padding():
  segment_BL = jnp.asarray([[1, 1, 1, 2, 2, 0, 0, 0], [3, 3, 3, 3, 3, 3, 3, 3]])
  bounds = attention_kernels.segment_bounds(segment_BL, 4)
  np.testing.assert_array_equal(bounds.start_BM, [[0, 3, 5, -1], [0, -1, -1, -1]])
  np.testing.assert_array_equal(bounds.length_BM, [[3, 2, 3, -1], [8, -1, -1, -1]])
  assert bounds.fits
  assert not attention_kernels.segment_bounds(segment_BL, 2).fits


def by_bounds(q, k, v, bounds):
  """Stands in for cuDNN: attends by the bounds that it is given."""
  position_L = jnp.arange(q.shape[1])
  inside_BLM = position_L[None, :, None] >= bounds.start_BM[:, None]
  inside_BLM &= bounds.start_BM[:, None] >= 0
  return attention_reference(q, k, v, packed_rows(inside_BLM.sum(axis=2)))


@pytest.mark.parametrize('segments', [1, 15, 16, 17, 40])
def test_rows_of_many_segments_are_computed_with_a_mask(segments, monkeypatch):
  """No GPU is here: references stand in, and NaN for the kernel that must not run."""
  few = segments <= attention_kernels.MAX_SEGMENTS
  instead = lambda q, k, v, _: q * jnp.nan
  monkeypatch.setattr(
    attention_kernels, 'cudnn_segments', by_bounds if few else instead
  )
  monkeypatch.setattr(
    attention_kernels, 'cudnn', instead if few else attention_reference
  )
  l = 80
  segment_BL = jnp.asarray([1 + np.arange(l) * segments // l, np.ones(l, int)])
  x = qkv(l)
  weight = jax.random.normal(jax.random.key(9), x[0].shape)
  packed = lambda *x: attention_kernels.cudnn_packed(*x, segment_BL)
  reference = lambda *x: attention_reference(*x, packed_rows(segment_BL))

  def result_and_gradients(attend):
    y, pull = jax.vjp(attend, *x)
    return (y, *pull(weight))

  pairs = zip(
    result_and_gradients(packed), result_and_gradients(reference), strict=True
  )
  for actual, expected in pairs:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_xla_never_holds_the_logits_of_a_long_row():
  """Compiles attention for 8192 positions of 8 heads, without a kernel.

  All logits would be 2 GiB in fp32; those of a piece of 128 queries are 34 MB.
  """
  x = jax.eval_shape(partial(qkv, 8192, b=1, h=8, a=16))
  reach = packed_rows(packed_segments(8192, 1))
  mesh = make_mesh({})

  def total(*x):
    return attend(*x, reach, mesh).sum()

  lowered = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*x)
  memory = lowered.compile().memory_analysis()
  assert attention_kernels.MANY_LOGITS == 2**20
  assert memory.temp_size_in_bytes < 300 * 2**20
