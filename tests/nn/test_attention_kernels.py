"""Every kernel gives what the reference gives, gradients included, on one device and on every mesh; and which is chosen when."""

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
from samples import mostly_long

from omni_jax.nn import attention_kernels
from omni_jax.nn.attention_kernels import choose, in_pieces, Kernel
from omni_jax.nn.context import attend, balanced_positions
from omni_jax.nn.reach import attention_reference, cached, packed_rows, within
from omni_jax.sharding import make_mesh

B, H, G, A = 2, 4, 2, 128


def qkv(l, s=None, b=B, h=H, g=G, a=A, dtype=jnp.float32):
  return [
    jax.random.normal(jax.random.key(i), (b, n, m, a), dtype)
    for i, (n, m) in enumerate([(l, h), (s or l, g), (s or l, g)])
  ]


def packed(l, b=B):
  """Rows of three examples with borders in the middle of tiles, and padding behind; the last row is nearly empty."""
  segment = np.zeros((b, l), np.int32)
  for row, borders in enumerate(np.linspace([0.1, 0.4, 0.9], [0.01, 0.02, 0.03], b)):
    for number, (start, end) in enumerate(zip([0, *borders], borders, strict=False), 1):
      segment[row, int(start * l) : int(end * l)] = number
  return jnp.asarray(segment)


def with_gradients(attention, x):
  """Output, and gradients of a sum that weighs every number of it differently."""
  weight = jax.random.normal(jax.random.key(9), x[0].shape)

  def scalar(*x):
    y = attention(*x)
    return (y * weight).sum(), y

  (_, y), grads = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True))(
    *x
  )
  return y, *grads


def assert_equal(ours, theirs, tolerance=2e-5):
  for name, mine, other in zip(('y', 'dq', 'dk', 'dv'), ours, theirs, strict=True):
    assert np.isfinite(mine).all(), name
    np.testing.assert_allclose(
      mine, other, rtol=tolerance, atol=tolerance, err_msg=name
    )


@pytest.mark.parametrize(
  'reach',
  [packed_rows(packed(50)), within(packed(50)), within(jnp.minimum(packed(50), 1))],
  ids=['packed', 'items', 'one item'],
)
def test_in_pieces_equals_the_reference(reach):
  """Also where the last piece is not full. The sums are the same, over the keys of a query; what differs is their order."""
  x = qkv(50, a=8)
  assert_equal(
    with_gradients(partial(in_pieces, reach=reach, piece=16), x),
    with_gradients(partial(attention_reference, reach=reach), x),
  )


def test_in_pieces_reads_a_cache():
  slot = jnp.asarray([[3, 4, 5, 6, 7], [0, 1, 2, 30, 30]])
  q, k, v = qkv(5, 30, a=8)
  reach = cached(slot, 30)
  np.testing.assert_allclose(
    in_pieces(q, k, v, reach, piece=2),
    attention_reference(q, k, v, reach),
    rtol=1e-5,
    atol=1e-5,
  )


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
  """The TPU's kernel, interpreted: packed rows with padding, grouped heads, positions over devices, gradients.

  Over 512 keys the softmax is summed tile by tile and rescaled, hence 2e-5 and not 2e-6.
  """
  x, segment = qkv(l), packed(l)
  theirs = with_gradients(partial(attention_reference, reach=packed_rows(segment)), x)
  mesh = make_mesh(sizes)
  with jax.set_mesh(mesh):
    ours = with_gradients(
      partial(attend, reach=packed_rows(segment), mesh=mesh, kernel=Kernel.SPLASH), x
    )
  assert_equal(ours, theirs)
  for mine in ours:
    assert (np.asarray(mine)[np.asarray(segment) == 0] == 0).all(), (
      'padding gets nothing and gives nothing'
    )


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
@pytest.mark.parametrize('sizes', mostly_long(MESHES, 2, 5, 7, 9), ids=str)
def test_every_mesh_equals_one_device(sizes, reach_of, monkeypatch):
  """Two key heads over four devices, four query heads over eight, 48 positions over eight: what fits and what does not."""
  monkeypatch.setattr(
    'omni_jax.nn.attention_kernels.MANY_LOGITS', 500
  )  # in pieces, where positions are not split
  x, reach = qkv(48, b=8, a=8), reach_of(packed(48, 8))
  mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
  with jax.set_mesh(mesh):
    ours = with_gradients(partial(attend, reach=reach, mesh=mesh), x)
  assert_equal(ours, with_gradients(partial(attention_reference, reach=reach), x))


@pytest.mark.parametrize(
  'sizes', [dict(data=8), dict(data=2, tensor=2, context=2), dict(context=8)], ids=str
)
@pytest.mark.parametrize('l', [1, 16])
def test_a_cache_is_read_on_every_mesh(sizes, l):
  x, mesh = qkv(l, 24, b=3, a=8), make_mesh(sizes)
  reach = cached(jnp.arange(l)[None] + jnp.asarray([[3], [0], [7]]), 24)
  with jax.set_mesh(mesh):
    ours = jax.jit(partial(attend, reach=reach, mesh=mesh))(*x)
  np.testing.assert_allclose(ours, attention_reference(*x, reach), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('parts', [1, 2, 3, 4, 8])
def test_positions_are_shared_out_evenly(parts):
  """Every position once; and every device sees as many keys of a causal row as the others."""
  position_NL = balanced_positions(48, parts)
  assert sorted(position_NL.ravel()) == list(range(48))
  assert len(set((position_NL + 1).sum(axis=1))) == 1


@pytest.mark.parametrize('parts', [1, 4])
def test_tiles_answer_as_the_whole_mask_does(parts):
  position_NL = balanced_positions(2048, parts)
  whole_mask = splash_mask.CausalMask((2048, 2048))
  whole_mask.q_sequence = position_NL.reshape(-1)
  for process in (splash_mask_info.process_mask, splash_mask_info.process_mask_dkv):
    ours, theirs = (
      process(splash_mask.MultiHeadMask([mask] * 2), (128, 256), q_seq_shards=parts)[0]
      for mask in (attention_kernels.CausalTiles(position_NL.reshape(-1)), whole_mask)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def shaped(l, s=None, a=128, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct((1, l, 8, a), dtype), jax.ShapeDtypeStruct(
    (1, s or l, 2, a), dtype
  )


TPU, CPU = types.SimpleNamespace(platform='tpu'), types.SimpleNamespace(platform='cpu')
T4, A100, AMD = (
  types.SimpleNamespace(platform='gpu', compute_capability=c)
  for c in ('7.5', '8.0', 'gfx942')
)
ONES = jnp.ones((1, 8), jnp.int32)
CAUSAL, ITEMS = packed_rows(ONES), within(ONES)


@pytest.mark.parametrize(
  'device, shapes, reach, kernel',
  [
    (TPU, shaped(4096), CAUSAL, Kernel.SPLASH),
    (TPU, shaped(1024, 4096), CAUSAL, Kernel.SPLASH),
    (TPU, shaped(96), CAUSAL, Kernel.REFERENCE),
    (TPU, shaped(4000), CAUSAL, Kernel.PIECES),
    (TPU, shaped(4096), ITEMS, Kernel.PIECES),
    (CPU, shaped(4096), CAUSAL, Kernel.PIECES),
    (CPU, shaped(512), CAUSAL, Kernel.REFERENCE),
    (None, shaped(4096), CAUSAL, Kernel.PIECES),
    (A100, shaped(4096), ITEMS, Kernel.CUDNN),
    (A100, shaped(4096, dtype=jnp.float32), CAUSAL, Kernel.PIECES),
    (A100, shaped(512, a=100), CAUSAL, Kernel.REFERENCE),
    (A100, shaped(16384), CAUSAL, Kernel.PIECES),
    (A100, shaped(1, 512), CAUSAL, Kernel.REFERENCE),
    (T4, shaped(4096), CAUSAL, Kernel.PIECES),
    (AMD, shaped(4096), CAUSAL, Kernel.PIECES),
  ],
)
def test_the_kernel_fits_device_and_shapes(device, shapes, reach, kernel):
  assert choose(device, *shapes, reach) is kernel


def test_cudnn_is_called_with_one_mask_for_all_heads_and_keys_as_they_are(monkeypatch):
  """As far as can be seen without a GPU: what is lowered for CUDA, forward and backward."""
  limits = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
  for name, answer in dict(
    check_cudnn_version=91000,
    check_compute_capability=True,
    is_cuda_compute_capability_equal=False,
  ).items():
    monkeypatch.setattr(limits, name, lambda *_, answer=answer: answer)
  x, reach = qkv(256, a=64, dtype=jnp.bfloat16), packed_rows(packed(256))
  gradients = jax.jit(
    jax.grad(
      lambda *x: attention_kernels.cudnn(*x, reach).astype(jnp.float32).sum(),
      argnums=(0, 1, 2),
    )
  )
  text = gradients.trace(*x).lower(lowering_platforms=('cuda',)).as_text()
  calls = [line for line in text.splitlines() if 'custom_call @__cudnn' in line]
  assert ['Backward' in line for line in calls] == [False, True]
  assert all(
    'tensor<2x256x2x64xbf16>' in line and 'tensor<2x1x256x256xbf16>' in line
    for line in calls
  )


def test_xla_never_holds_the_logits_of_a_long_row():
  """Without a kernel, 8192 positions of 8 heads: all logits would be 2 GiB in fp32, a piece of 128 queries is 34 MB."""
  x, reach = (
    [
      jax.ShapeDtypeStruct(a.shape, a.dtype)
      for a in jax.eval_shape(partial(qkv, 8192, b=1, h=8, a=16))
    ],
    packed_rows(packed(8192, 1)),
  )
  mesh = make_mesh({})
  memory = (
    jax.jit(jax.grad(lambda *x: attend(*x, reach, mesh).sum(), argnums=(0, 1, 2)))
    .lower(*x)
    .compile()
    .memory_analysis()
  )
  assert attention_kernels.MANY_LOGITS == 2**20
  assert memory.temp_size_in_bytes < 300 * 2**20
