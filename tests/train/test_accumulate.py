"""A batch in parts gives the update of the whole batch, whatever lies in which part, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from samples import BUDGET, laid, make_kit, mostly_long, packed, rows, tiny_model

from omni_jax.objective import LossConfig
from omni_jax.sharding import name_of
from omni_jax.train.accumulate import cut_into

CONFIG = tiny_model(experts=8)


@pytest.fixture(scope='module')
def uneven():
  """Eight rows whose parts have different numbers of words, drawings and spoken frames."""
  items = [item for seed in range(5) for item in laid(CONFIG, seed)][:23]
  batch = packed(items, CONFIG.hosts(), rows(BUDGET, 8))
  parts = cut_into(jax.tree.map(jnp.asarray, batch), 2)
  weights = {'text': parts.weight_BL}
  for name in ('image.drawn', 'audio.spoken'):
    weights[name] = parts.streams[name].write_at_BM >= 0
  for name, weight in weights.items():
    count = weight.reshape(2, -1).sum(axis=1)
    assert count[0] != count[1], f'{name} would hide a mean of means'
  return batch


def updated(batch, parts, **sizes):
  kit = make_kit(
    CONFIG, optax.sgd(0.05, momentum=0.9), LossConfig(balance=0, z=0), parts, **sizes
  )
  state, figures = kit.step(kit.state, batch)
  return state, jax.device_get(figures)


@pytest.fixture(scope='module')
def whole(uneven):
  return updated(uneven, 1)


CASES = [(2, {}), (8, {}), (2, {'data': 2, 'fsdp': 2}), (4, {'expert': 2})]


@pytest.mark.parametrize('parts, sizes', mostly_long(CASES, 0, 2), ids=str)
def test_parts_equal_the_whole(uneven, whole, parts, sizes):
  """Without the routers' losses, which are means over parts by nature."""
  state, figures = updated(uneven, parts, **sizes)
  wanted, wanted_figures = whole
  for name, value in figures.items():
    if not name.startswith(('loss/balance', 'loss/z', 'routing/')):
      np.testing.assert_allclose(
        value, wanted_figures[name], rtol=2e-5, atol=2e-5, err_msg=name
      )
  np.testing.assert_allclose(
    figures['routing/expert_by_modality'], wanted_figures['routing/expert_by_modality']
  )
  leaves = jax.tree_util.tree_leaves_with_path(wanted.opt_state)
  for (path, theirs), ours in zip(
    leaves, jax.tree.leaves(state.opt_state), strict=True
  ):
    np.testing.assert_allclose(
      ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name_of(path)
    )


def test_the_routers_losses_count_once(uneven):
  """Four parts that are all alike are like one of them."""
  same = jax.tree.map(lambda x: np.repeat(x[:2], 4, axis=0), uneven)
  config = LossConfig(dict(text=0, image=0, audio=0), balance=0.3, z=0.2)
  one, many = (make_kit(CONFIG, optax.sgd(0.05), config, parts) for parts in (1, 4))
  (_, wanted), (_, figures) = one.step(one.state, same), many.step(many.state, same)
  for name in (
    'loss/total',
    'loss/balance',
    'loss/z',
    'grad_norm/total',
    'grad_norm/decoder',
    'routing/entropy',
  ):
    np.testing.assert_allclose(figures[name], wanted[name], rtol=1e-4, err_msg=name)
