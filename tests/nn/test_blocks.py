"""Blocks in a loop equal blocks one after the other, gradients included."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.nn.blocks import FEW_BLOCKS, scan_blocks
from omni_jax.nn.layers import SwiGLU

WIDTH = 8


def apply(block, x, scale):
  y = x + scale * block(x)
  return y, y.sum()


def one_by_one(blocks, x, scales):
  sums = []
  for block, scale in zip(blocks, scales, strict=True):
    x, total = apply(block, x, scale)
    sums.append(total)
  return x, jnp.stack(sums)


@pytest.mark.parametrize('count', [1, FEW_BLOCKS, FEW_BLOCKS + 2])
@pytest.mark.parametrize('policy', [None, jax.checkpoint_policies.nothing_saveable])
def test_a_loop_equals_one_block_after_the_other(count, policy):
  rngs = nnx.Rngs(0)
  blocks = nnx.List([SwiGLU(WIDTH, 16, rngs=rngs) for _ in range(count)])
  graph, params = nnx.split(blocks)
  x = jax.random.normal(jax.random.key(1), (3, WIDTH))
  scales = jnp.arange(1.0, count + 1)

  def total(params, x, run):
    y, sums = run(nnx.merge(graph, params), x, scales)
    return (y**2).sum() + (sums**2).sum()

  def in_a_loop(blocks, x, scales):
    return scan_blocks(apply, blocks, x, scales, dtype=x.dtype, policy=policy)

  results = []
  for run in (in_a_loop, one_by_one):
    gradient = jax.value_and_grad(lambda p, x, run=run: total(p, x, run), (0, 1))
    results.append(jax.tree.leaves(jax.jit(gradient)(params, x)))
  for actual, expected in zip(*results, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-5)


def test_many_blocks_are_compiled_once():
  rngs = nnx.Rngs(0)
  blocks = nnx.List([SwiGLU(WIDTH, 16, rngs=rngs) for _ in range(12)])

  def run(x):
    return scan_blocks(apply, blocks, x, jnp.ones(12), dtype=x.dtype)[0]

  products = str(jax.make_jaxpr(run)(jnp.ones((3, WIDTH)))).count('dot_general')
  assert products == 3
