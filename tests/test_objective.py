"""Objectives are plain functions: a few lines are enough to train with one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import samples
from samples import chat, packed_batch, text

from omni_jax.checkpoint.train_state import TrainState
from omni_jax.data.example_maker import prepare
from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.model import encode_streams, merge
from omni_jax.objective import Objective, Outcome, Pretraining
from omni_jax.train.step import make_step, StepFn
from omni_jax.types import Batch, RowBudget

# Segments of a row.
CHOSEN = 0
REJECTED = 1
STREAMS = {'image.drawn': (32, 2), 'audio.spoken': (8, 2)}
HEADS = ('text', 'image', 'audio')


def batch_of_pairs(hosts) -> Batch:
  """Returns two rows, each with two answers to one question, in every medium.

  The first answer is the chosen one, the second the rejected one.
  """
  examples = []
  for k, words in enumerate([('yes', 'no'), ('five', 'nine')]):
    for word in words:
      rng = np.random.default_rng(len(examples))
      answer = [text(word), samples.picture(rng, 4, 4), samples.sound(rng, 2)]
      name = f'pair/{k}/{word}'
      examples.append(chat(name, [text('?')], answer, task='reply'))
  budget = RowBudget(rows=2, length=96, streams=STREAMS)
  batch = packed_batch([prepare(example, hosts) for example in examples], hosts, budget)
  assert batch.segment_BL.max(axis=1).tolist() == [2, 2]
  return batch


@pytest.fixture(scope='module')
def batch(kit):
  return batch_of_pairs(kit.config.hosts())


def losses_of_segments(
  mesh, model, params, reference, batch, key
) -> dict[str, HeadLoss]:
  """Returns the loss of each head over each segment (rows, 2)."""
  network = merge(model, params)
  coded = encode_streams(model.config, reference['frozen'], batch)
  hidden_BLD = network(coded, reference['router_bias'], mesh).hidden_BLD
  return network.segment_losses(hidden_BLD, coded, key, segments=2)


def chosen_loss(mesh, head, model, params, reference, batch, key):
  """Returns the mean loss of the chosen answers: an objective."""
  losses = losses_of_segments(mesh, model, params, reference, batch, key)
  return losses[head].mean[:, CHOSEN].mean(), Outcome({}, {})


def preference_loss(mesh, head, model, params, reference, batch, key):
  """Returns a loss that falls as chosen answers become likelier than rejected ones.

  This objective has no reference model, as in SimPO.
  """
  losses = losses_of_segments(mesh, model, params, reference, batch, key)
  chosen, rejected = losses[head].mean.T
  loss = -jax.nn.log_sigmoid(rejected - chosen).mean()
  return loss, Outcome({'margin': (rejected - chosen).mean()}, {})


def train(kit, objective, batch, steps: int = 30) -> tuple[TrainState, list[dict]]:
  """Trains with an objective; returns the last state and the metrics of each step."""
  tx = optax.adam(3e-3)
  step: StepFn = kit.jit(make_step(objective, kit.model, tx))
  state = kit.state._replace(opt_state=tx.init(kit.state.params))
  history = []
  for _ in range(steps):
    state, metrics = step(state, batch)
    history.append(jax.device_get(metrics))
  return state, history


@pytest.fixture(scope='module')
def segment_means(kit, batch):
  """Returns a function (state, head) -> mean losses (rows, segments).

  They are means over several samples of the noise of images.
  """
  run = kit.jit(functools.partial(losses_of_segments, kit.mesh, kit.model))

  def means(state: TrainState, head: str) -> np.ndarray:
    samples = []
    for seed in range(5):
      losses = run(state.params, state.buffers, batch, jax.random.key(seed))
      samples.append(losses[head].mean)
    return np.mean(samples, axis=0)

  return means


@pytest.mark.parametrize('head', HEADS)
def test_a_loss_on_one_segment_of_a_pair_falls(kit, batch, segment_means, head):
  objective = functools.partial(chosen_loss, kit.mesh, head)
  assert isinstance(objective, Objective)
  state, metrics = train(kit, objective, batch)
  before = segment_means(kit.state, head)
  after = segment_means(state, head)
  assert (after[:, CHOSEN] < 0.8 * before[:, CHOSEN]).all(), (before, after)
  assert after[:, CHOSEN].mean() < after[:, REJECTED].mean()
  assert metrics[-1]['loss/total'] < metrics[0]['loss/total']
  assert int(state.step) == 30
  assert not any(step['skipped'] for step in metrics)


def test_a_preference_raises_the_margin_of_the_chosen(kit, batch, segment_means):
  head = 'text'
  objective = functools.partial(preference_loss, kit.mesh, head)
  state, metrics = train(kit, objective, batch)
  before = segment_means(kit.state, head)
  after = segment_means(state, head)
  margin = lambda means: means[:, REJECTED] - means[:, CHOSEN]
  assert (margin(after) > margin(before)).all(), (before, after)
  assert metrics[-1]['margin'] > metrics[0]['margin'] + 0.1
  assert metrics[-1]['loss/total'] < metrics[0]['loss/total']


def test_an_objective_without_heads_and_statistics_changes_only_what_it_reaches(
  kit, batch
):
  """No head or router is logged, no buffer changes and no other head learns."""
  objective = functools.partial(chosen_loss, kit.mesh, 'audio')
  state, (metrics,) = train(kit, objective, batch, steps=1)
  assert {'loss/total', 'grad_norm/total', 'grad_norm/decoder'} <= set(metrics)
  assert not [name for name in metrics if name.startswith(('weight/', 'routing/'))]
  assert metrics['grad_norm/heads.audio'] > 0
  assert metrics['grad_norm/heads.text'] == metrics['grad_norm/heads.image'] == 0
  after = jax.tree.leaves(state.buffers)
  before = jax.tree.leaves(kit.state.buffers)
  for actual, expected in zip(after, before, strict=True):
    np.testing.assert_array_equal(actual, expected)


def test_an_objective_may_use_a_frozen_reference(kit, batch):
  """Compares with a fixed copy of the model in the buffers, as DPO does."""

  def against_reference(model, params, reference, batch, key):
    def text_losses(params):
      losses = losses_of_segments(kit.mesh, model, params, reference, batch, key)
      return losses['text'].total

    loss_BS = text_losses(params)
    reference_loss_BS = text_losses(reference['anchor'])
    gain_BS = jax.lax.stop_gradient(reference_loss_BS) - loss_BS
    margin_B = gain_BS[:, CHOSEN] - gain_BS[:, REJECTED]
    loss = -jax.nn.log_sigmoid(0.5 * margin_B).mean()
    return loss, Outcome({'margin': margin_B.mean()}, {})

  anchor = jax.tree.map(jnp.copy, kit.state.params)
  buffers = kit.state.buffers | {'anchor': anchor}
  with_anchor = kit._replace(state=kit.state._replace(buffers=buffers))
  state, metrics = train(with_anchor, against_reference, batch, steps=10)
  np.testing.assert_allclose(metrics[0]['loss/total'], np.log(2), rtol=1e-5)
  assert abs(metrics[0]['margin']) < 1e-4
  assert metrics[-1]['margin'] > 0.5
  jax.tree.map(np.testing.assert_array_equal, state.buffers['anchor'], anchor)


def test_pretraining_is_an_objective(kit, batch):
  """The class and a plain function around it give bit-identical steps."""
  pretraining = Pretraining(samples.LOSSES, kit.mesh, bias_step=1e-3)
  assert isinstance(pretraining, Objective)
  plain = lambda *args: pretraining(*args)
  state, (metrics,) = train(kit, pretraining, batch, steps=1)
  plain_state, (plain_metrics,) = train(kit, plain, batch, steps=1)
  assert {f'loss/{head}' for head in HEADS} <= set(metrics)
  assert metrics['loss/total'] == plain_metrics['loss/total']
  jax.tree.map(np.testing.assert_array_equal, state.params, plain_state.params)
