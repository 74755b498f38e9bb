"""Chunked cross-entropy equals the plain one on every mesh and stores few logits.

Gradients are compared too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.modalities.text.cross_entropy import (
  cross_entropy,
  cross_entropy_reference,
)
from omni_jax.sharding import make_mesh

ROWS = 8
LENGTH = 6
WIDTH = 16
VOCAB = 24
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


class Inputs(NamedTuple):
  hidden_BLD: jax.Array
  w_DV: jax.Array
  target_BL: jax.Array
  weight_BL: jax.Array


def inputs(vocab=VOCAB, dtype=jnp.float32) -> Inputs:
  keys = jax.random.split(jax.random.key(0), 4)
  return Inputs(
    jax.random.normal(keys[0], (ROWS, LENGTH, WIDTH)).astype(dtype),
    jax.random.normal(keys[1], (WIDTH, vocab)).astype(dtype),
    jax.random.randint(keys[2], (ROWS, LENGTH), 0, vocab),
    jnp.maximum(jax.random.normal(keys[3], (ROWS, LENGTH)), 0),
  )


def chunked_on_mesh(sizes, case: Inputs, logits=2**27):
  """Returns loss and gradients on a mesh of these sizes."""
  mesh = make_mesh(sizes)

  def loss(hidden, w):
    total = cross_entropy(
      hidden, w, case.target_BL, case.weight_BL, axes=AXES, mesh=mesh, logits=logits
    )
    return 0.3 * total

  with jax.set_mesh(mesh):
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return run(case.hidden_BLD, case.w_DV)


def reference(case: Inputs):
  """Returns loss and gradients by the plain formula."""
  target = case.target_BL.reshape(-1)
  weight = case.weight_BL.reshape(-1)

  def loss(hidden, w):
    return 0.3 * cross_entropy_reference(hidden.reshape(-1, WIDTH), w, target, weight)

  return jax.value_and_grad(loss, argnums=(0, 1))(case.hidden_BLD, case.w_DV)


def assert_close(actual, expected):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('sizes', MESHES, ids=str)
@pytest.mark.parametrize('logits', [1, 5 * VOCAB, 2**27])
def test_chunks_equal_the_reference_on_every_mesh(sizes, logits):
  """One token per chunk, chunks that do not divide the tokens, and one chunk."""
  assert_close(chunked_on_mesh(sizes, inputs(), logits), reference(inputs()))


def test_a_vocabulary_that_no_axis_divides_stays_whole():
  odd = inputs(vocab=23)
  assert_close(chunked_on_mesh({'data': 2, 'tensor': 4}, odd), reference(odd))


def test_half_precision_is_summed_in_single_precision():
  """Logits, their sum and the weight's gradient over chunks are fp32.

  Only operands are rounded.
  """
  half = inputs(dtype=jnp.bfloat16)
  single = half._replace(
    hidden_BLD=half.hidden_BLD.astype(jnp.float32), w_DV=half.w_DV.astype(jnp.float32)
  )
  loss, gradients = chunked_on_mesh({}, half, VOCAB)
  expected_loss, expected_gradients = reference(single)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  for actual, expected in zip(gradients, expected_gradients, strict=True):
    assert actual.dtype == jnp.bfloat16
    tolerance = 0.02 * np.abs(expected).max()
    np.testing.assert_allclose(actual.astype(jnp.float32), expected, atol=tolerance)


def test_no_array_holds_all_logits():
  vocab = 4096
  hidden, w, target, weight = inputs(vocab=vocab)
  mesh = make_mesh({})

  def program(logits: int) -> str:
    def loss(hidden, w):
      return cross_entropy(
        hidden, w, target, weight, axes=AXES, mesh=mesh, logits=logits
      )

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return gradient.lower(hidden, w).compile().as_text()

  all_logits = ROWS * LENGTH * vocab
  shape = f'{ROWS * LENGTH},{vocab}]'
  assert shape in program(all_logits)
  assert shape not in program(all_logits // 8)
