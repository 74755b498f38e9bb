"""Tests the FLOPs, bytes and collectives of small programs with known counts.

They are compiled for simulated CPU devices and, where libtpu is installed, for TPUs.
"""

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
from omni_jax.compile.schedule import Transfer, Wait, Work
from omni_jax.nn.expert_parallel import Dispatch, Exchange
from omni_jax.nn.moe import MoE, MoEConfig
from omni_jax.sharding import compiler_options, make_mesh, mesh_axes

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
LAYERS = 7
ROWS = 2048
WIDTH = 512


def array(mesh, shape, *axes, dtype=jnp.bfloat16):
  """Returns the shape of an array that is split over the axes."""
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))


def compiled_cost(function, *arguments, **options):
  """Compiles a function and returns its cost; the options are those of `jax.jit`."""
  compiled = jax.jit(function, **options).lower(*arguments).compile()
  return cost_of(hlo.parse(compiled.as_text()))


def chain(x_BD, w_IDD, remat=False):
  """Returns the last result of a scan of products, one for each matrix."""
  body = lambda x, w: (jnp.tanh(x @ w), None)
  if remat:
    body = jax.checkpoint(body)
  last, _ = jax.lax.scan(body, x_BD, w_IDD)
  return last


def total(remat, x_BD, w_IDD):
  """Returns the sum over the result of the scan."""
  return chain(x_BD, w_IDD, remat).astype(jnp.float32).sum()


@on_every_platform
@pytest.mark.parametrize('layers', [1, 2, LAYERS])
def test_a_scan_counts_every_iteration(name, layers):
  mesh = make_mesh(dict(data=-1), topology.describe(name).devices)
  x = array(mesh, (8 * ROWS, WIDTH), 'data')
  w = array(mesh, (layers, WIDTH, WIDTH))
  cost = compiled_cost(chain, x, w)
  assert cost.flops == layers * 2 * ROWS * WIDTH * WIDTH
  assert not cost.unknown_loops
  assert not cost.transfers


@on_every_platform
@pytest.mark.parametrize('remat, products', [(False, 3), (True, 4)])
def test_the_gradient_of_a_scan_counts_what_remat_computes_again(name, remat, products):
  mesh = make_mesh(dict(data=-1), topology.describe(name).devices)
  gradient = jax.grad(functools.partial(total, remat), argnums=(0, 1))
  x = array(mesh, (8 * ROWS, WIDTH), 'data')
  w = array(mesh, (LAYERS, WIDTH, WIDTH))
  cost = compiled_cost(gradient, x, w)
  assert cost.flops == products * LAYERS * 2 * ROWS * WIDTH * WIDTH
  assert not cost.unknown_loops


@on_every_platform
def test_a_batched_product_counts_its_batch_once(name):
  """The TPU compiler turns it into a convolution with the batch as a dilated axis."""
  mesh = make_mesh(dict(data=-1), topology.describe(name).devices)
  x = array(mesh, (16, 256, 4, 128), 'data')
  y = array(mesh, (16, 384, 4, 128), 'data')
  cost = compiled_cost(lambda x, y: jnp.einsum('nqhd,nkhd->nhqk', x, y), x, y)
  assert cost.flops == 2 * 2 * 256 * 384 * 4 * 128


@on_every_platform
def test_gathered_weights_are_counted_to_the_byte(name):
  """Each chip gathers the weights of a layer once per iteration of the scan.

  Both the rows and the weights are split over fsdp.
  """
  description = topology.describe(name)
  mesh = make_mesh(dict(fsdp=-1), description.devices)
  replicated = NamedSharding(mesh, P())

  def layer(x, w):
    whole = jax.lax.with_sharding_constraint(w, replicated)
    return jnp.tanh(x @ whole), None

  def gather_and_multiply(x, w):
    last, _ = jax.lax.scan(layer, x, w)
    return last

  # XLA gathers in float32 on CPUs, whatever the type of the weights.
  dtype = jnp.float32 if name.startswith('cpu') else jnp.bfloat16
  x = array(mesh, (8 * ROWS, WIDTH), 'fsdp', dtype=dtype)
  w = array(mesh, (LAYERS, WIDTH, WIDTH), None, 'fsdp', dtype=dtype)
  cost = compiled_cost(gather_and_multiply, x, w)
  all_traffic = estimate(cost, mesh, description).traffic
  gathers = [traffic for traffic in all_traffic if traffic.kind == 'all-gather']
  # On all chips of a 3-D torus the compiler gathers by reducing arrays of zeros.
  if name.startswith('v5p'):
    kinds = {transfer.kind for transfer in cost.transfers}
    assert kinds <= {'all-gather', 'all-reduce'}
    return
  (gather,) = gathers
  assert gather.axes == 'fsdp'
  share_of_others = 7 / 8
  stack = LAYERS * WIDTH * WIDTH * dtype.dtype.itemsize
  assert gather.moved == stack * share_of_others


@pytest.mark.parametrize(
  'kind, members, expected_bytes',
  [
    ('all-gather', 4, 300.0),
    ('reduce-scatter', 4, 75.0),
    ('all-reduce', 4, 150.0),
    ('all-to-all', 4, 75.0),
    ('collective-permute', 4, 100.0),
    ('all-reduce', 1, 0.0),
  ],
)
def test_every_kind_of_collective_moves_its_bytes(kind, members, expected_bytes):
  assert moved_bytes(kind, 100.0, members) == expected_bytes


@pytest.mark.parametrize(
  'over, axes',
  [('data', 'data'), ('tensor', 'tensor'), (('data', 'tensor'), 'data+tensor')],
  ids=str,
)
def test_groups_are_named_by_mesh_axes(over, axes):
  mesh = make_mesh(dict(data=2, expert=2, tensor=2))
  summed_axes = (over,) if isinstance(over, str) else over
  result_axes = [None if axis in summed_axes else axis for axis in ('data', 'tensor')]
  summed = jax.shard_map(
    lambda x: jax.lax.psum(x, over),
    mesh=mesh,
    in_specs=P('data', 'tensor'),
    out_specs=P(*result_axes),
    check_vma=False,
  )
  x = array(mesh, (8, 8), 'data', 'tensor', dtype=jnp.float32)
  (transfer,) = compiled_cost(summed, x).transfers
  assert Groups(mesh).members(transfer.groups).axes == axes
  elements = 4 * 4  # of a device
  assert transfer.payload == elements * 4


def test_a_loop_that_ends_by_its_data_is_named_and_counted_once():
  def squared_until_large(x):
    return jax.lax.while_loop(lambda x: x.sum() < 1e6, lambda x: x @ x, x)

  cost = compiled_cost(squared_until_large, jnp.ones((64, 64)))
  assert cost.flops == 2 * 64**3
  assert len(cost.unknown_loops) == 1


def test_a_loop_inside_a_loop_counts_every_iteration():
  def inner(x):
    return jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ x), x)

  def outer(x):
    return jax.lax.fori_loop(2, 5, lambda i, x: inner(x), x)

  cost = compiled_cost(outer, jnp.ones((64, 64)))
  assert cost.flops == 3 * 5 * 2 * 64**3
  assert not cost.unknown_loops


def test_a_conditional_counts_its_largest_branch():
  def branches(condition, x):
    return jax.lax.cond(condition, lambda x: x @ x @ x, lambda x: x + 1, x)

  cost = compiled_cost(branches, True, jnp.ones((64, 64)))
  assert cost.flops == 2 * 2 * 64**3


def test_a_slice_of_a_stack_does_not_read_the_stack():
  """A scan over a stack of weights reads the stack once, not once per iteration."""
  cost = compiled_cost(chain, jnp.ones((8, WIDTH)), jnp.ones((50, WIDTH, WIDTH)))
  stack = 50 * WIDTH * WIDTH * 4
  assert stack <= cost.bytes < 4 * stack


@needs_libtpu
def test_writing_a_few_rows_of_a_large_array_does_not_count_the_array():
  """A loop that scatters into its carry, as decoding does into its cache."""
  mesh = make_mesh(dict(data=1), topology.describe('v5e:1x1').devices)
  rows, slots, width = 8, 4096, 512

  def write(cache_IBSA, new_BA, slot_B):
    def body(cache_IBSA, layer):
      target = cache_IBSA.at[layer, jnp.arange(rows), slot_B]
      return target.set(new_BA, mode='drop'), None

    return jax.lax.scan(body, cache_IBSA, jnp.arange(LAYERS))[0]

  shapes = [
    array(mesh, (LAYERS, rows, slots, width)),
    array(mesh, (rows, width)),
    array(mesh, (rows,), dtype=jnp.int32),
  ]
  layer = rows * slots * width * 2
  in_place = compiled_cost(write, *shapes, donate_argnums=0).bytes
  copied = compiled_cost(write, *shapes).bytes
  assert in_place < 0.01 * layer
  assert 2 * LAYERS * layer <= copied < 2 * LAYERS * layer + 0.01 * layer


@needs_libtpu
def test_kernels_count_by_their_estimate_or_are_listed():
  from jax.experimental import pallas as pl

  mesh = make_mesh(dict(data=1), topology.describe('v5e:1x1').devices)

  def double(x, estimate):
    kernel = lambda x, y: y.__setitem__(..., 2 * x[...])
    return pl.pallas_call(
      kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), cost_estimate=estimate
    )(x)

  declared = pl.CostEstimate(flops=12345, transcendentals=0, bytes_accessed=999)
  x = array(mesh, (256, 256), dtype=jnp.float32)
  with jax.set_mesh(mesh):
    with_estimate = compiled_cost(functools.partial(double, estimate=declared), x)
    without = compiled_cost(functools.partial(double, estimate=None), x)
  assert with_estimate.flops == 12345
  assert not with_estimate.uncounted
  assert without.uncounted == {'tpu_custom_call': 1}


@needs_libtpu
def test_links_are_slower_along_a_line_than_around_a_ring():
  seconds = {}
  for name in ('v5e:4x4', 'v5e:16x16', 'v5p:4x4x4'):
    description = topology.describe(name)
    members = Members('fsdp', 4, (4, 1, 1)[: len(description.sides)])
    seconds[name] = link_seconds('all-gather', 100e6, members, description)
  # Three times the payload of one chip, over one link.
  assert seconds['v5e:4x4'] == 3 * 100e6 / 50e9
  # 4 of 16 chips are a line, too.
  assert seconds['v5e:16x16'] == seconds['v5e:4x4']
  # In both directions of the ring.
  assert seconds['v5p:4x4x4'] == 3 * 100e6 / (2 * 100e9)


@needs_libtpu
def test_what_crosses_slices_takes_the_data_center_network():
  description = topology.describe('2xv5e:4x4')
  mesh = make_mesh(dict(data=2, fsdp=-1), description.devices)
  first_row, _ = mesh.devices
  slices = {device.slice_index for device in first_row.flat}
  assert slices == {0}, 'only the axis data may go across slices'

  summed = jax.shard_map(
    lambda x: jax.lax.psum(x, 'data'),
    mesh=mesh,
    in_specs=P('data', 'fsdp'),
    out_specs=P(None, 'fsdp'),
    check_vma=False,
  )
  x = array(mesh, (2, 1 << 20), 'data', 'fsdp', dtype=jnp.float32)
  seconds = estimate(compiled_cost(summed, x), mesh, description)
  (traffic,) = seconds.traffic
  assert traffic.kind == 'all-reduce'
  assert traffic.axes == 'data'
  assert traffic.network == 'DCN'
  assert np.isclose(seconds.networks['DCN data'], 4 * (1 << 16) / description.chip.dcn)


def test_a_program_of_20000_instructions_is_parsed():
  lines = [
    'HloModule m',
    '',
    'ENTRY %main (p: f32[4,4]) -> f32[4,4] {',
    '  %p = f32[4,4]{1,0} parameter(0)',
  ]
  for i in range(20_000):
    add = f'  %add.{i} = f32[4,4]{{1,0}} add(%p, %p)'
    lines.append(add + ', metadata={op_name="jit(f)/add"}')
  lines += ['  ROOT %r = f32[4,4]{1,0} multiply(%add.0, %add.1)', '}', '']
  module = hlo.parse('\n'.join(lines))
  assert len(module.entry.instructions) == 20_002
  assert module.entry.root.name == 'r'
  assert cost_of(module).bytes == 20_001 * 3 * 64


def test_an_instruction_may_span_several_lines():
  """The metadata of a kernel may hold line breaks; its last line begins with braces."""
  text = """HloModule m

ENTRY %main (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  %k = f32[4,4]{1,0} custom-call(%p), custom_call_target="k", frontend_attributes={metadata={
"x": "1"
}}, backend_config={"cost_estimate":{"flops":"7","bytes_accessed":"9"}}
  ROOT %r = f32[4,4]{1,0} add(%k, %k)
}
"""
  cost = cost_of(hlo.parse(text))
  assert cost.flops == 7
  assert cost.bytes == 9 + 3 * 64


def test_an_all_reduce_moves_as_much_as_two_reduce_scatters():
  all_reduce = moved_bytes('all-reduce', 8.0, 8)
  reduce_scatter = moved_bytes('reduce-scatter', 8.0, 8)
  assert np.isclose(all_reduce, 2 * reduce_scatter)


@needs_libtpu
def test_the_shared_expert_runs_while_tokens_are_on_their_way():
  """libtpu schedules at least two of its three products while tokens are exchanged.

  It does so in a train step: between the start of an all-to-all and its end.
  """
  mesh = make_mesh(dict(expert=-1), topology.describe('v5p:2x2x1').devices)
  width = 512
  shared = 768  # so that its products have other FLOPs than those of the routed experts
  rows = 8
  length = 1024
  config = MoEConfig(
    width=width,
    hidden=256,
    experts=8,
    top_k=2,
    shared=shared,
    dispatch=Dispatch(Exchange.ALL_TO_ALL, capacity=2.0, block=64),
    modalities=4,
    routers=1,
  )
  model = nnx.eval_shape(lambda: MoE(config, rngs=nnx.Rngs(0)))
  graph, weights = nnx.split(model)

  def placed(weight):
    axes = ('expert',) if weight.ndim == 3 else ()
    return array(mesh, weight.shape, *axes)

  def loss(weights, x_BLD, modality_BL, bias_E):
    outputs = nnx.merge(graph, weights)(x_BLD, modality_BL, bias_E, mesh)
    return outputs[0].astype(jnp.float32).sum()

  with jax.set_mesh(mesh):
    cost = compiled_cost(
      jax.value_and_grad(loss, argnums=(0, 1)),
      jax.tree.map(placed, weights),
      array(mesh, (rows, length, width), mesh_axes(mesh, 'batch')),
      array(mesh, (rows, length), mesh_axes(mesh, 'batch'), dtype=jnp.int32),
      array(mesh, (8,), dtype=jnp.float32),
      compiler_options=compiler_options(mesh),
    )
  product_flops = 2 * rows * length / 4 * width * shared
  in_flight = set()
  products_meanwhile = 0
  for event in cost.order:
    if isinstance(event, Transfer):
      if event.kind == 'ragged-all-to-all' and event.wait_name:
        in_flight.add(event.wait_name)
    elif isinstance(event, Wait):
      in_flight.discard(event.name)
    elif isinstance(event, Work):
      if event.name.startswith('gmm'):
        break  # the routed experts begin: the tokens have arrived
      if in_flight and event.flops == product_flops:
        products_meanwhile += 1
  assert products_meanwhile >= 2
