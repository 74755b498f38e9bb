"""Objectives are plain functions: a few lines of one go through the train step, and the model learns by it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import samples
from samples import chat, packed, text

from omni_jax.checkpoint.train_state import TrainState
from omni_jax.data.making import prepare
from omni_jax.model import encode_streams, merge
from omni_jax.objective import Objective, Outcome, Pretraining
from omni_jax.train.step import make_step, StepFn
from omni_jax.types import Batch, RowBudget

CHOSEN, REJECTED = 0, 1  # segments of a row
STREAMS = {'image.drawn': (32, 2), 'audio.spoken': (8, 2)}
HEADS = ('text', 'image', 'audio')


def pairs(hosts) -> Batch:
  """Two rows of two answers to one question each, in every medium: the first is chosen, the second rejected."""
  examples = []
  for k, words in enumerate([('yes', 'no'), ('five', 'nine')]):
    for word in words:
      rng = np.random.default_rng(len(examples))
      answer = [text(word), samples.picture(rng, 4, 4), samples.sound(rng, 2)]
      name = f'pair/{k}/{word}'
      examples.append(chat(name, [text('?')], answer, task='reply'))
  budget = RowBudget(rows=2, length=96, streams=STREAMS)
  batch = packed([prepare(example, hosts) for example in examples], hosts, budget)
  assert batch.segment_BL.max(axis=1).tolist() == [2, 2]
  return batch


@pytest.fixture(scope='module')
def batch(kit):
  return pairs(kit.config.hosts())


def losses_of_segments(mesh, model, params, reference, batch, key) -> dict[str, Any]:
  network = merge(model, params)
  coded = encode_streams(model.config, reference['frozen'], batch)
  hidden_BLD = network(coded, reference['router_bias'], mesh).hidden_BLD
  return network.segment_losses(hidden_BLD, coded, key, segments=2)


def of_chosen(mesh, head, model, params, reference, batch, key):
  """The mean loss of the chosen answers."""
  losses = losses_of_segments(mesh, model, params, reference, batch, key)
  return losses[head].mean[:, CHOSEN].mean(), Outcome({}, {})


def preference(mesh, head, model, params, reference, batch, key):
  """The chosen answers are to be likelier than the rejected ones (without a reference model, as in SimPO)."""
  chosen, rejected = losses_of_segments(mesh, model, params, reference, batch, key)[
    head
  ].mean.T
  loss = -jax.nn.log_sigmoid(rejected - chosen).mean()
  return loss, Outcome({'margin': (rejected - chosen).mean()}, {})


def trained(kit, objective, batch, steps: int = 30) -> tuple[TrainState, list[dict]]:
  tx = optax.adam(3e-3)
  step: StepFn = kit.meshed(make_step(objective, kit.model, tx))
  state = kit.state._replace(opt_state=tx.init(kit.state.params))
  metrics = []
  for _ in range(steps):
    state, figures = step(state, batch)
    metrics.append(jax.device_get(figures))
  return state, metrics


@pytest.fixture(scope='module')
def segment_means(kit, batch):
  """(state, head) -> mean losses (rows, segments), over several draws of the noise of images."""
  run = kit.meshed(functools.partial(losses_of_segments, kit.mesh, kit.model))

  def means(state: TrainState, head: str) -> np.ndarray:
    keys = [jax.random.key(k) for k in range(5)]
    draws = [run(state.params, state.buffers, batch, key)[head].mean for key in keys]
    return np.mean(draws, axis=0)

  return means


@pytest.mark.parametrize('head', HEADS)
def test_a_loss_on_one_segment_of_a_pair_is_learnt(kit, batch, segment_means, head):
  objective = functools.partial(of_chosen, kit.mesh, head)
  assert isinstance(objective, Objective)
  state, metrics = trained(kit, objective, batch)
  before, after = segment_means(kit.state, head), segment_means(state, head)
  assert (after[:, CHOSEN] < 0.8 * before[:, CHOSEN]).all(), (before, after)
  assert after[:, CHOSEN].mean() < after[:, REJECTED].mean()
  assert metrics[-1]['loss/total'] < metrics[0]['loss/total']
  assert int(state.step) == 30 and not any(x['skipped'] for x in metrics)


def test_a_preference_lowers_the_chosen_against_the_rejected(kit, batch, segment_means):
  head = 'text'
  objective = functools.partial(preference, kit.mesh, head)
  state, metrics = trained(kit, objective, batch)
  before, after = segment_means(kit.state, head), segment_means(state, head)
  margin = lambda x: x[:, REJECTED] - x[:, CHOSEN]
  assert (margin(after) > margin(before)).all(), (before, after)
  assert metrics[-1]['margin'] > metrics[0]['margin'] + 0.1
  assert metrics[-1]['loss/total'] < metrics[0]['loss/total']


def test_the_step_reports_what_an_objective_gives_and_trains_only_what_it_reaches(
  kit, batch
):
  """No heads and no statistics: nothing is logged of them, no buffer moves, and other heads get no gradient."""
  objective = functools.partial(of_chosen, kit.mesh, 'audio')
  state, (metrics,) = trained(kit, objective, batch, steps=1)
  assert {'loss/total', 'grad_norm/total', 'grad_norm/decoder'} <= set(metrics)
  assert not [name for name in metrics if name.startswith(('weight/', 'routing/'))]
  assert metrics['grad_norm/heads.audio'] > 0
  assert metrics['grad_norm/heads.text'] == metrics['grad_norm/heads.image'] == 0
  for ours, theirs in zip(
    jax.tree.leaves(state.buffers), jax.tree.leaves(kit.state.buffers), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_an_objective_may_use_a_frozen_reference(kit, batch):
  """The buffers are its `reference`: a copy of the model in them is what DPO compares with, and it does not move."""

  def against_reference(model, params, reference, batch, key):
    ours, theirs = (
      losses_of_segments(kit.mesh, model, p, reference, batch, key)['text'].total
      for p in (params, reference['anchor'])
    )
    gain_BS = jax.lax.stop_gradient(theirs) - ours
    margin_B = gain_BS[:, CHOSEN] - gain_BS[:, REJECTED]
    return -jax.nn.log_sigmoid(0.5 * margin_B).mean(), Outcome(
      {'margin': margin_B.mean()}, {}
    )

  anchor = jax.tree.map(jnp.copy, kit.state.params)
  buffers = kit.state.buffers | {'anchor': anchor}
  with_anchor = kit._replace(state=kit.state._replace(buffers=buffers))
  state, metrics = trained(with_anchor, against_reference, batch, steps=10)
  np.testing.assert_allclose(metrics[0]['loss/total'], np.log(2), rtol=1e-5)
  assert abs(metrics[0]['margin']) < 1e-4 and metrics[-1]['margin'] > 0.5
  jax.tree.map(np.testing.assert_array_equal, state.buffers['anchor'], anchor)


def test_pretraining_is_one_of_them(kit, batch):
  """The same step with the same state and key, by the class and by a plain function around it."""
  pretraining = Pretraining(samples.LossConfig(), kit.mesh)
  assert isinstance(pretraining, Objective)
  plain = lambda *args: pretraining(*args)
  by_class, (metrics,) = trained(kit, pretraining, batch, steps=1)
  by_function, (other,) = trained(kit, plain, batch, steps=1)
  assert {f'loss/{head}' for head in HEADS} <= set(metrics)
  assert metrics['loss/total'] == other['loss/total']
  jax.tree.map(np.testing.assert_array_equal, by_class.params, by_function.params)
