"""A batch in parts gives the update of the whole batch, on any mesh.

The result does not depend on what is in which part.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samples import (
  BUDGET,
  laid_out_examples,
  make_kit,
  mark_long_except,
  packed_batch,
  tiny_model,
  with_rows,
)

from omni_jax.nn.moe_router import RouterStats
from omni_jax.objective import LossConfig, over_parts
from omni_jax.sharding import named_leaves
from omni_jax.train.accumulate import split_batch

CONFIG = tiny_model(experts=8)


@pytest.fixture(scope='module')
def uneven():
  """Returns eight rows whose parts differ in words, drawings and spoken frames."""
  items = []
  for seed in range(5):
    items += laid_out_examples(CONFIG, seed)
  batch = packed_batch(items[:23], CONFIG.hosts(), with_rows(BUDGET, 8))
  parts = split_batch(jax.tree.map(jnp.asarray, batch), 2)
  weights = {'text': parts.weight_BL}
  for name in ('image.drawn', 'audio.spoken'):
    weights[name] = parts.streams[name].write_at_BM >= 0
  for name, weight in weights.items():
    count = weight.reshape(2, -1).sum(axis=1)
    assert count[0] != count[1], f'{name} would hide a mean of means'
  return batch


def update(batch, parts, **sizes):
  """Returns state and metrics after a step without the routers' losses."""
  tx = optax.sgd(0.05, momentum=0.9)
  kit = make_kit(CONFIG, tx, LossConfig({}, balance=0, z=0), parts, **sizes)
  state, metrics = kit.step(kit.state, batch)
  return state, jax.device_get(metrics)


@pytest.fixture(scope='module')
def whole(uneven):
  """Returns state and metrics after a step on the whole batch."""
  return update(uneven, 1)


def test_metrics_of_parts_are_averaged_and_counts_are_summed():
  """A metric that an objective adds later is kept, too."""
  parts = jnp.asarray([1.0, 4.0])
  table = jnp.ones((2, 3, 4))
  stats = RouterStats(
    balance=parts, z=parts, entropy=parts, load_E=parts, load_mE=table, dropped=parts
  )
  metrics = {'tokens': jnp.asarray([3, 5]), 'filled': parts, 'new': parts}
  of_batch, stats = over_parts(metrics, stats)
  assert of_batch == {'tokens': 8, 'filled': 2.5, 'new': 2.5}
  assert stats.balance == stats.dropped == 2.5
  assert (stats.load_mE == 2).all() and stats.load_mE.shape == (3, 4)


CASES = [(2, {}), (8, {}), (2, {'data': 2, 'fsdp': 2}), (4, {'expert': 2})]


@pytest.mark.parametrize('parts, sizes', mark_long_except(CASES, 0, 2), ids=str)
def test_parts_equal_the_whole(uneven, whole, parts, sizes):
  """The routers' losses are not compared: they are means over the parts."""
  state, metrics = update(uneven, parts, **sizes)
  expected_state, expected_metrics = whole
  for name, actual in metrics.items():
    if not name.startswith(('loss/balance', 'loss/z', 'routing/')):
      expected = expected_metrics[name]
      np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5, err_msg=name)
  table = 'routing/expert_by_modality'
  np.testing.assert_allclose(metrics[table], expected_metrics[table])
  moments = named_leaves(state.opt_state)
  expected_moments = named_leaves(expected_state.opt_state)
  assert moments.keys() == expected_moments.keys()
  for name, actual in moments.items():
    expected = expected_moments[name]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_routers_losses_count_once(uneven):
  """Four equal parts give the losses of one of them."""
  batch = jax.tree.map(lambda x: np.repeat(x[:2], 4, axis=0), uneven)
  config = LossConfig(dict(text=0, image=0, audio=0), balance=0.3, z=0.2)
  one = make_kit(CONFIG, optax.sgd(0.05), config, 1)
  four = make_kit(CONFIG, optax.sgd(0.05), config, 4)
  _, expected = one.step(one.state, batch)
  _, metrics = four.step(four.state, batch)
  for name in (
    'loss/total',
    'loss/balance',
    'loss/z',
    'grad_norm/total',
    'grad_norm/decoder',
    'routing/entropy',
  ):
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4, err_msg=name)
