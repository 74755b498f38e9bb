"""A batch in parts gives the update of the whole batch, on any mesh.

This does not depend on what is in which part.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samples import BUDGET, laid, make_kit, mark_long_except, packed, rows, tiny_model

from omni_jax.objective import LossConfig
from omni_jax.sharding import named_leaves
from omni_jax.train.accumulate import split_batch

CONFIG = tiny_model(experts=8)


@pytest.fixture(scope='module')
def uneven():
  """Eight rows whose parts differ in numbers of words, drawings and spoken frames."""
  items = []
  for seed in range(5):
    items += laid(CONFIG, seed)
  batch = packed(items[:23], CONFIG.hosts(), rows(BUDGET, 8))
  parts = split_batch(jax.tree.map(jnp.asarray, batch), 2)
  weights = {'text': parts.weight_BL}
  for name in ('image.drawn', 'audio.spoken'):
    weights[name] = parts.streams[name].write_at_BM >= 0
  for name, weight in weights.items():
    count = weight.reshape(2, -1).sum(axis=1)
    assert count[0] != count[1], f'{name} would hide a mean of means'
  return batch


def updated(batch, parts, **sizes):
  """State and metrics after a step without the routers' losses."""
  tx = optax.sgd(0.05, momentum=0.9)
  kit = make_kit(CONFIG, tx, LossConfig(balance=0, z=0), parts, **sizes)
  state, metrics = kit.step(kit.state, batch)
  return state, jax.device_get(metrics)


@pytest.fixture(scope='module')
def whole(uneven):
  return updated(uneven, 1)


CASES = [(2, {}), (8, {}), (2, {'data': 2, 'fsdp': 2}), (4, {'expert': 2})]


@pytest.mark.parametrize('parts, sizes', mark_long_except(CASES, 0, 2), ids=str)
def test_parts_equal_the_whole(uneven, whole, parts, sizes):
  """Except for the routers' losses, which are means over the parts."""
  state, metrics = updated(uneven, parts, **sizes)
  expected, expected_metrics = whole
  for name, ours in metrics.items():
    if not name.startswith(('loss/balance', 'loss/z', 'routing/')):
      theirs = expected_metrics[name]
      np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5, err_msg=name)
  table = 'routing/expert_by_modality'
  np.testing.assert_allclose(metrics[table], expected_metrics[table])
  moments = named_leaves(state.opt_state)
  expected_moments = named_leaves(expected.opt_state)
  assert moments.keys() == expected_moments.keys()
  for name, ours in moments.items():
    theirs = expected_moments[name]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_routers_losses_count_once(uneven):
  """Four equal parts give the losses of one of them."""
  same = jax.tree.map(lambda x: np.repeat(x[:2], 4, axis=0), uneven)
  config = LossConfig(dict(text=0, image=0, audio=0), balance=0.3, z=0.2)
  one = make_kit(CONFIG, optax.sgd(0.05), config, 1)
  four = make_kit(CONFIG, optax.sgd(0.05), config, 4)
  _, expected = one.step(one.state, same)
  _, metrics = four.step(four.state, same)
  for name in (
    'loss/total',
    'loss/balance',
    'loss/z',
    'grad_norm/total',
    'grad_norm/decoder',
    'routing/entropy',
  ):
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4, err_msg=name)
