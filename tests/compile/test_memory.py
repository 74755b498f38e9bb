"""Tests the memory of programs with known buffers that do and do not fit."""

import importlib.util

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from omni_jax.chips import GIB
from omni_jax.compile import hlo, topology
from omni_jax.compile.cost import cost_of
from omni_jax.compile.memory import bytes_on_a_device, largest_buffers
from omni_jax.compile.program import compile_program, Program
from omni_jax.sharding import make_mesh

needs_libtpu = pytest.mark.skipif(
  not importlib.util.find_spec('libtpu'),
  reason='libtpu is not installed; pip install "jax[tpu]"',
)
LAYERS = 7
WIDTH = 4096


def gradient_program(name, rows):
  """Returns the program of a gradient of a scan with remat.

  The scan keeps the input of every layer: (LAYERS, rows / 4, WIDTH) of bf16 on each of
  four devices.
  """
  mesh = make_mesh(dict(data=-1), topology.describe(name).devices)

  def loss(x, w):
    body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
    last, _ = jax.lax.scan(body, x, w)
    return last.astype(jnp.float32).sum()

  by_rows = NamedSharding(mesh, P('data'))
  replicated = NamedSharding(mesh, P())
  x = jax.ShapeDtypeStruct((rows, WIDTH), jnp.bfloat16, sharding=by_rows)
  w = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.bfloat16, sharding=replicated)
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
  return Program(mesh, gradient, {'parameters': w, 'batch': x}, (x, w))


def test_bytes_on_a_device_are_those_of_its_shard():
  program = gradient_program('cpu:4', 1024)
  batch = bytes_on_a_device(program.arguments['batch'])
  parameters = bytes_on_a_device(program.arguments['parameters'])
  assert batch == 1024 / 4 * WIDTH * 2
  assert parameters == LAYERS * WIDTH * WIDTH * 2


@needs_libtpu
@pytest.mark.parametrize('rows, fits', [(1 << 15, True), (1 << 20, False)])
def test_saved_inputs_are_the_largest_buffer(rows, fits):
  """The inputs of the layers are found also in a program that does not fit.

  Inputs of 1 GiB fit a v5e. Inputs of 14 GiB do not fit next to the other temporaries.
  """
  compiled = compile_program(gradient_program('v5e:2x2', rows))
  memory = compiled.memory
  saved = LAYERS * rows / 4 * WIDTH * 2
  assert bool(compiled.refusal) != fits
  assert memory.largest[0].size == saved and memory.peak > saved
  assert (memory.peak < 15.75 * GIB) == fits
  arguments = sum(memory.kinds.values()) + memory.padding
  parts = arguments + memory.results + memory.temporaries + memory.program
  assert abs(parts - memory.peak) < 1e6
  if fits:
    flops = cost_of(hlo.parse(compiled.text)).flops
    assert flops == 4 * LAYERS * 2 * rows / 4 * WIDTH * WIDTH
  else:
    assert 'exceeds available HBM (15.75G)' in compiled.refusal


def test_buffers_are_read_from_the_assignment():
  text = (
    'allocation 0: size 4096, parameter 0, shape |f32[1024]| at ShapeIndex {}:\n'
    ' value: <1 p @0> (size=4096,offset=0): f32[1024]{0:T(1024)}\n'
    'allocation 1: size 9000, preallocated-temp:\n'
    ' value: <2 fusion.1 @0> (size=8192,offset=0): bf16[4096]{0:T(1024)}\n'
    ' value: <3 while.2{1} (phi) @0> (size=8192,offset=0): bf16[4096]{0}\n'
    ' value: <4 small @0> (size=512,offset=8192): s32[]\n'
    'allocation 2: size 100000, color 1, preallocated-temp:\n'
    ' value: <5 in_vmem @1> (size=100000,offset=0): f32[25000]{0:S(1)}\n'
  )
  first, second = largest_buffers(text)
  assert first.size == 8192
  assert first.shapes == 'bf16[4096]'
  assert first.names == ('fusion.1', 'while.2{1}')
  assert second.names == ('small',)
