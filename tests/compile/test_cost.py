"""FLOPs, bytes and collectives of small programs whose counts are known, on pretended CPUs and, with libtpu, on TPUs."""

import functools
import importlib.util

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from omni_jax.compile import hlo, topology
from omni_jax.compile.cost import cost_of
from omni_jax.compile.groups import Groups, Members
from omni_jax.compile.roofline import estimate, link_seconds, moved_bytes
from omni_jax.compile.schedule import Loop, scheduled_seconds, Transfer, Wait, Work
from omni_jax.nn.expert_parallel import Dispatch, Exchange
from omni_jax.nn.moe import MoE, MoEConfig
from omni_jax.sharding import BATCH_AXES, compiler_options, make_mesh

needs_libtpu = pytest.mark.skipif(
  not importlib.util.find_spec('libtpu'),
  reason='libtpu is not installed; pip install "jax[tpu]"',
)
TOPOLOGIES = [
  'cpu:8',
  pytest.param('v5e:2x4', marks=needs_libtpu),
  pytest.param('v5p:2x2x2', marks=needs_libtpu),
]
on_every_platform = pytest.mark.parametrize('name', TOPOLOGIES)
LAYERS, ROWS, WIDTH = 7, 2048, 512


def placed(mesh, shape, *axes, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))


def cost(function, *arguments, **options):
  return cost_of(
    hlo.parse(jax.jit(function, **options).lower(*arguments).compile().as_text())
  )


def chain(x_BD, w_IDD, remat=False):
  """A scan of LAYERS products."""
  body = lambda x, w: (jnp.tanh(x @ w), None)
  return jax.lax.scan(jax.checkpoint(body) if remat else body, x_BD, w_IDD)[0]


def total(remat, x_BD, w_IDD):
  return chain(x_BD, w_IDD, remat).astype(jnp.float32).sum()


@on_every_platform
@pytest.mark.parametrize('layers', [1, 2, LAYERS])
def test_scan_counts_every_turn(name, layers):
  mesh = make_mesh(dict(data=-1), topology.describe(name).devices)
  found = cost(
    chain, placed(mesh, (8 * ROWS, WIDTH), 'data'), placed(mesh, (layers, WIDTH, WIDTH))
  )
  assert (
    found.flops == layers * 2 * ROWS * WIDTH * WIDTH
    and not found.endless
    and not found.transfers
  )


@on_every_platform
@pytest.mark.parametrize('remat, products', [(False, 3), (True, 4)])
def test_gradient_of_a_scan_and_what_remat_computes_again(name, remat, products):
  mesh = make_mesh(dict(data=-1), topology.describe(name).devices)
  found = cost(
    jax.grad(functools.partial(total, remat), argnums=(0, 1)),
    placed(mesh, (8 * ROWS, WIDTH), 'data'),
    placed(mesh, (LAYERS, WIDTH, WIDTH)),
  )
  assert (
    found.flops == products * LAYERS * 2 * ROWS * WIDTH * WIDTH and not found.endless
  )


@on_every_platform
def test_batched_product_counts_its_batch_once(name):
  """The TPU compiler makes a convolution of it, with the batch as a dilated axis."""
  mesh = make_mesh(dict(data=-1), topology.describe(name).devices)
  found = cost(
    lambda x, y: jnp.einsum('nqhd,nkhd->nhqk', x, y),
    placed(mesh, (16, 256, 4, 128), 'data'),
    placed(mesh, (16, 384, 4, 128), 'data'),
  )
  assert found.flops == 2 * 2 * 256 * 384 * 4 * 128


@on_every_platform
def test_gathered_weights_are_counted_to_the_byte(name):
  """Rows over fsdp and weights over fsdp: every chip gathers the weights of a layer, once a turn of the scan."""
  mesh = make_mesh(dict(fsdp=-1), topology.describe(name).devices)

  def gathered(x, w):
    keep = lambda w: jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ keep(w)), None), x, w)[0]

  dtype = (
    jnp.float32 if name.startswith('cpu') else jnp.bfloat16
  )  # XLA:CPU gathers in float32 whatever it is given
  found = cost(
    gathered,
    placed(mesh, (8 * ROWS, WIDTH), 'fsdp', dtype=dtype),
    placed(mesh, (LAYERS, WIDTH, WIDTH), None, 'fsdp', dtype=dtype),
  )
  where = topology.describe(name)
  traffic = [
    one for one in estimate(found, mesh, where).traffic if one.kind == 'all-gather'
  ]
  if name.startswith(
    'v5p'
  ):  # all chips of a 3-D torus: the compiler gathers by a reduction of zeros
    assert {one.kind for one in found.transfers} <= {'all-gather', 'all-reduce'}
    return
  assert [one.axes for one in traffic] == ['fsdp']
  assert traffic[0].moved == LAYERS * WIDTH * WIDTH * dtype.dtype.itemsize * 7 / 8


@pytest.mark.parametrize(
  'kind, members, moved',
  [
    ('all-gather', 4, 300.0),
    ('reduce-scatter', 4, 75.0),
    ('all-reduce', 4, 150.0),
    ('all-to-all', 4, 75.0),
    ('collective-permute', 4, 100.0),
    ('all-reduce', 1, 0.0),
  ],
)
def test_moved_bytes(kind, members, moved):
  assert moved_bytes(kind, 100.0, members) == moved


@pytest.mark.parametrize(
  'over, axes',
  [('data', 'data'), ('tensor', 'tensor'), (('data', 'tensor'), 'data+tensor')],
  ids=str,
)
def test_groups_are_named_by_mesh_axes(over, axes):
  mesh = make_mesh(dict(data=2, expert=2, tensor=2))

  def summed(x):
    return jax.shard_map(
      lambda x: jax.lax.psum(x, over),
      mesh=mesh,
      in_specs=P('data', 'tensor'),
      out_specs=P(*(None if axis in over else axis for axis in ('data', 'tensor'))),
      check_vma=False,
    )(x)

  found = cost(summed, placed(mesh, (8, 8), 'data', 'tensor', dtype=jnp.float32))
  assert [Groups(mesh).members(one.groups).axes for one in found.transfers] == [axes]
  assert [one.payload for one in found.transfers] == [4 * 4 * 4]


def test_a_loop_that_ends_by_its_data_is_named_and_counted_once():
  found = cost(
    lambda x: jax.lax.while_loop(lambda x: x.sum() < 1e6, lambda x: x @ x, x),
    jnp.ones((64, 64)),
  )
  assert found.flops == 2 * 64**3 and len(found.endless) == 1


def test_a_loop_in_a_loop():
  def inner(x):
    return jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ x), x)

  found = cost(
    lambda x: jax.lax.fori_loop(2, 5, lambda i, x: inner(x), x), jnp.ones((64, 64))
  )
  assert found.flops == 3 * 5 * 2 * 64**3 and not found.endless


def test_a_branch_counts_with_its_most():
  found = cost(
    lambda p, x: jax.lax.cond(p, lambda x: x @ x @ x, lambda x: x + 1, x),
    True,
    jnp.ones((64, 64)),
  )
  assert found.flops == 2 * 2 * 64**3


def test_a_slice_of_a_stack_is_not_the_stack():
  """A scan over a stack of weights reads the stack once, not once a turn."""
  found = cost(chain, jnp.ones((8, WIDTH)), jnp.ones((50, WIDTH, WIDTH)))
  stack = 50 * WIDTH * WIDTH * 4
  assert stack <= found.bytes < 4 * stack


@needs_libtpu
def test_kernels_count_by_their_estimate_or_are_named():
  from jax.experimental import pallas as pl

  mesh = make_mesh(dict(data=1), topology.describe('v5e:1x1').devices)

  def double(x, estimate):
    kernel = lambda x, y: y.__setitem__(..., 2 * x[...])
    return pl.pallas_call(
      kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), cost_estimate=estimate
    )(x)

  said = pl.CostEstimate(flops=12345, transcendentals=0, bytes_accessed=999)
  x = placed(mesh, (256, 256), dtype=jnp.float32)
  with jax.set_mesh(mesh):
    found = cost(functools.partial(double, estimate=said), x)
    assert found.flops == 12345 and not found.uncounted
    assert cost(functools.partial(double, estimate=None), x).uncounted == {
      'tpu_custom_call': 1
    }


@needs_libtpu
def test_links_are_slower_along_a_line_than_around_a_ring():
  seconds = {}
  for name in ('v5e:4x4', 'v5e:16x16', 'v5p:4x4x4'):
    where = topology.describe(name)
    members = Members('fsdp', 4, (4, 1, 1)[: len(where.sides)])
    seconds[name] = link_seconds('all-gather', 100e6, members, where)
  assert (
    seconds['v5e:4x4'] == 3 * 100e6 / 50e9
  )  # three times what one puts in, over one link
  assert seconds['v5e:16x16'] == seconds['v5e:4x4']  # 4 of 16 chips are a line, too
  assert seconds['v5p:4x4x4'] == 3 * 100e6 / (2 * 100e9)  # both ways round


@needs_libtpu
def test_what_crosses_slices_takes_the_data_center_network():
  where = topology.describe('2xv5e:4x4')
  mesh = make_mesh(dict(data=2, fsdp=-1), where.devices)
  assert {d.slice_index for d in mesh.devices[0].flat} == {0}, (
    'data goes across slices, nothing else does'
  )

  def summed(x):
    return jax.shard_map(
      lambda x: jax.lax.psum(x, 'data'),
      mesh=mesh,
      in_specs=P('data', 'fsdp'),
      out_specs=P(None, 'fsdp'),
      check_vma=False,
    )(x)

  found = estimate(
    cost(summed, placed(mesh, (2, 1 << 20), 'data', 'fsdp', dtype=jnp.float32)),
    mesh,
    where,
  )
  assert [(one.kind, one.axes, one.network) for one in found.traffic] == [
    ('all-reduce', 'data', 'DCN')
  ]
  assert np.isclose(found.networks['DCN data'], 4 * (1 << 16) / where.chip.dcn)


def test_parsing_takes_time_that_grows_with_the_text_alone():
  body = '\n'.join(
    f'  %add.{i} = f32[4,4]{{1,0}} add(%p, %p), metadata={{op_name="jit(f)/add"}}'
    for i in range(20_000)
  )
  text = (
    f'HloModule m\n\nENTRY %main (p: f32[4,4]) -> f32[4,4] {{\n  %p = f32[4,4]{{1,0}} parameter(0)\n{body}\n'
    '  ROOT %r = f32[4,4]{1,0} multiply(%add.0, %add.1)\n}\n'
  )
  module = hlo.parse(text)
  assert len(module.entry.instructions) == 20_002 and module.entry.root.name == 'r'
  assert cost_of(module).bytes == 20_001 * 3 * 64


def test_instructions_may_go_over_several_lines():
  """Somebody's metadata of a kernel holds line breaks; the last of its lines begins with braces."""
  text = (
    'HloModule m\n\nENTRY %main (p: f32[4,4]) -> f32[4,4] {\n  %p = f32[4,4]{1,0} parameter(0)\n'
    '  %k = f32[4,4]{1,0} custom-call(%p), custom_call_target="a_kernel", frontend_attributes={kernel_metadata={\n'
    '"x": "1"\n}}, backend_config={"cost_estimate":{"flops":"7","bytes_accessed":"9"}}\n'
    '  ROOT %r = f32[4,4]{1,0} add(%k, %k)\n}\n'
  )
  found = cost_of(hlo.parse(text))
  assert found.flops == 7 and found.bytes == 9 + 3 * 64


def test_moved_bytes_of_a_ring_are_what_every_member_sends():
  assert np.isclose(
    moved_bytes('all-reduce', 8.0, 8), 2 * moved_bytes('reduce-scatter', 8.0, 8)
  )


WORK = Work('add', 1, 0.0, 0.0, '')
send = lambda awaited='', network='ICI fsdp': Transfer(
  'gather', 'all-gather', 1, 8.0, network, '', awaited
)


@pytest.mark.parametrize(
  'order, seconds',
  [
    ([WORK, send(), WORK], 2 + 3 + 2),
    ([send('a'), WORK, WORK, Wait('a')], 2 + 2),
    ([send('a'), WORK, Wait('a'), WORK], 3 + 2),
    (
      [send('a'), send('b'), WORK, Wait('b')],
      3 + 3,
    ),  # one network, one transfer at a time
    ([send('a'), send('b', 'ICI expert'), WORK, Wait('b'), Wait('a')], 3),
    ([send('a'), send(), WORK, Wait('a')], 3 + 3 + 2),
    ([Loop(5, [send('a'), WORK, Wait('a')]), WORK], 5 * 3 + 2),
    ([send('a'), Loop(5, [WORK]), Wait('a')], 5 * 2),
    ([WORK, send('a')], 2 + 3),
  ],
  ids=[
    'in_line',
    'hidden',
    'partly_hidden',
    'two_behind_each_other',
    'two_networks',
    'one_holds_up_another',
    'loop',
    'behind_a_loop',
    'awaited_by_nothing',
  ],
)
def test_seconds_of_a_schedule(order, seconds):
  assert (
    scheduled_seconds(order, lambda one: 2.0, lambda one: (one.groups, 3.0)) == seconds
  )


def test_the_order_of_a_program_has_the_three_forms_of_what_runs_beside_the_core():
  text = """HloModule m, is_scheduled=true

%inside (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-to-all(%a), channel_id=1, replica_groups={{0,1}}
}

%begin (b: f32[8]) -> f32[16] {
  %b = f32[8]{0} parameter(0)
  %g = f32[16]{0} all-gather(%b), channel_id=7, replica_groups={{0,1}}, dimensions={0}
  ROOT %s = f32[16]{0} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%end (c: f32[16]) -> f32[16] {
  %c = f32[16]{0} parameter(0)
  %h = f32[16]{0} all-gather(%c), channel_id=7, replica_groups={{0,1}}, dimensions={0}
  ROOT %t = f32[16]{0} custom-call(%h), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: f32[8]) -> f32[16] {
  %p = f32[8]{0} parameter(0)
  %x = ((f32[8]{0}), f32[8]{0}) async-start(%p), calls=%inside
  %y = (f32[8]{0}, f32[16]{0}) all-gather-start(%p), channel_id=3, replica_groups={{0,1}}, dimensions={0}
  %z = f32[16]{0} fusion(%p), kind=kCustom, calls=%begin
  %q = f32[8]{0} add(%p, %p)
  %zd = f32[16]{0} fusion(%z), kind=kCustom, calls=%end
  %xu = ((f32[8]{0}), f32[8]{0}) async-update(%x), calls=%inside
  %xd = f32[8]{0} async-done(%xu), calls=%inside
  %yd = f32[16]{0} all-gather-done(%y)
  %u = f32[8]{0} all-reduce(%xd), channel_id=9, replica_groups={{0,1}}, to_apply=%inside
  ROOT %v = f32[16]{0} add(%yd, %zd)
}
"""
  order = [
    one
    for one in cost_of(hlo.parse(text)).order
    if not isinstance(one, Work) or one.name == 'q'
  ]
  begun = [(one.kind, one.awaited) for one in order if isinstance(one, Transfer)]
  assert begun == [
    ('all-to-all', 'x'),
    ('all-gather', 'y'),
    ('all-gather', 'channel 7'),
    ('all-reduce', ''),
  ]
  assert [one.name for one in order[3:7]] == ['q', 'channel 7', 'x', 'y']


@needs_libtpu
def test_the_shared_expert_runs_while_tokens_are_on_their_way():
  """In a train step: libtpu's scheduler puts at least two of its three products between a start and its end."""
  mesh = make_mesh(dict(expert=-1), topology.describe('v5p:2x2x1').devices)
  width, shared, rows, length = (
    512,
    768,
    8,
    1024,
  )  # gate and up of the routed experts have other FLOPs
  config = MoEConfig(
    width=width,
    hidden=256,
    experts=8,
    top_k=2,
    shared=shared,
    how=Dispatch(Exchange.ALL_TO_ALL),
  )
  model = nnx.eval_shape(lambda: MoE(config, rngs=nnx.Rngs(0)))
  graph, weights = nnx.split(model)
  weights = jax.tree.map(
    lambda w: placed(mesh, w.shape, *(('expert',) if w.ndim == 3 else ())), weights
  )

  def loss(weights, x_BLD, modality_BL, bias_E):
    return (
      nnx.merge(graph, weights)(x_BLD, modality_BL, bias_E, mesh)[0]
      .astype(jnp.float32)
      .sum()
    )

  with jax.set_mesh(mesh):
    found = cost(
      jax.value_and_grad(loss, argnums=(0, 1)),
      weights,
      placed(mesh, (rows, length, width), BATCH_AXES),
      placed(mesh, (rows, length), BATCH_AXES, dtype=jnp.int32),
      placed(mesh, (8,), dtype=jnp.float32),
      compiler_options=compiler_options(mesh),
    )
  product = 2 * rows * length / 4 * width * shared
  under_way, meanwhile = set(), 0
  for one in found.order:
    if isinstance(one, Transfer) and one.kind == 'ragged-all-to-all' and one.awaited:
      under_way.add(one.awaited)
    elif isinstance(one, Wait):
      under_way.discard(one.name)
    elif isinstance(one, Work) and one.name.startswith('gmm'):
      break  # the routed experts: the tokens are there
    elif isinstance(one, Work) and under_way:
      meanwhile += one.flops == product
  assert meanwhile >= 2
