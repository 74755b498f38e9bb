"""The chunked cross-entropy equals the plain one, gradients included, on every mesh, and never holds all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.text.cross_entropy import (
  cross_entropy,
  cross_entropy_reference,
)
from omni_jax.sharding import make_mesh

ROWS, LENGTH, WIDTH, VOCAB = 8, 6, 16, 24
AXES = ('embed', 'vocab')
MESHES = [
  {},
  {'data': 8},
  {'fsdp': 8},
  {'tensor': 8},
  {'expert': 8},
  {'data': 4, 'context': 2},
  {'fsdp': 2, 'tensor': 2, 'context': 2},
  {'data': 2, 'fsdp': 2, 'tensor': 2},
]


def inputs(vocab=VOCAB, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 4)
  return (
    jax.random.normal(keys[0], (ROWS, LENGTH, WIDTH)).astype(dtype),
    jax.random.normal(keys[1], (WIDTH, vocab)).astype(dtype),
    jax.random.randint(keys[2], (ROWS, LENGTH), 0, vocab),
    jnp.maximum(jax.random.normal(keys[3], (ROWS, LENGTH)), 0),
  )


def on(sizes, logits=2**27):
  mesh = make_mesh(sizes)

  def run(hidden, w, target, weight):
    with jax.set_mesh(mesh):
      loss = lambda hidden, w: (
        0.3
        * cross_entropy(hidden, w, target, weight, axes=AXES, mesh=mesh, logits=logits)
      )
      return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden, w)

  return run


def reference(hidden, w, target, weight):
  flat = lambda hidden, w: (
    0.3
    * cross_entropy_reference(
      hidden.reshape(-1, WIDTH), w, target.reshape(-1), weight.reshape(-1)
    )
  )
  return jax.value_and_grad(flat, argnums=(0, 1))(hidden, w)


def assert_equal(got, wanted, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, wanted)


@pytest.mark.parametrize('sizes', MESHES, ids=str)
@pytest.mark.parametrize('logits', [1, 5 * VOCAB, 2**27])
def test_chunks_equal_reference_on_every_mesh(sizes, logits):
  """One token a chunk, chunks that do not divide the tokens, and one chunk."""
  assert_equal(on(sizes, logits)(*inputs()), reference(*inputs()), rtol=1e-5, atol=1e-5)


def test_a_vocabulary_that_no_axis_divides_stays_whole():
  assert_equal(
    on({'data': 2, 'tensor': 4})(*inputs(vocab=23)),
    reference(*inputs(vocab=23)),
    rtol=1e-5,
    atol=1e-5,
  )


def test_half_precision_is_summed_in_single():
  """Logits, their sum and the weight's gradient over chunks are fp32: only operands are rounded."""
  (loss, grads), (wanted, wanted_grads) = (
    on({}, VOCAB)(*inputs(dtype=jnp.bfloat16)),
    reference(
      *(
        x.astype(jnp.float32) if x.ndim > 2 or x.shape[0] == WIDTH else x
        for x in inputs(dtype=jnp.bfloat16)
      )
    ),
  )
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  for ours, theirs in zip(grads, wanted_grads, strict=True):
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      ours.astype(jnp.float32), theirs, atol=0.02 * np.abs(theirs).max()
    )


def test_no_array_holds_all_logits():
  hidden, w, target, weight = inputs(vocab=4096)
  on_one = lambda logits: (
    jax.jit(
      lambda h, w: jax.grad(
        lambda h, w: cross_entropy(
          h, w, target, weight, axes=AXES, mesh=make_mesh({}), logits=logits
        ),
        argnums=(0, 1),
      )(h, w)
    )
    .lower(hidden, w)
    .compile()
  )
  whole = ROWS * LENGTH * 4096
  assert f'{ROWS * LENGTH},4096]' in on_one(whole).as_text()
  assert f'{ROWS * LENGTH},4096]' not in on_one(whole // 8).as_text()
