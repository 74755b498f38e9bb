"""Fault 15: a loss or gradient that is not finite.

The update is skipped, or the run ends, as the config says. The records of the batch are
written to a file, and such a state is never saved.
"""

import json

from faults.toy import logged_metrics, Numbers, same, stage, update
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import BUDGET, examples, STAGE_OPTIONS

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.config import LoaderConfig
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader
from omni_jax.errors import UserError
from omni_jax.sharding import make_mesh
from omni_jax.train import loop
from omni_jax.train.numerics import skip_if_not_finite


@jax.jit
def step(state, batch):
  """Returns the state after an update that is skipped if it is not finite."""
  after, metrics = update(state, batch)
  return skip_if_not_finite(
    state, after, metrics | {'grad_norm/total': metrics['loss/total']}
  )


def bad_stage(steps=8, bad=(), value=np.nan, **options):
  """Returns the toy stage with this value in the batches of the steps `bad`."""
  batches = Numbers(replace=dict.fromkeys(bad, value))
  return stage(steps, batches=batches, step_fn=step, **options)


def check_finite(state):
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def bad_steps_of(workdir):
  """Returns the lines of bad_steps.jsonl."""
  text = (workdir / 'bad_steps.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
  'value', [np.nan, np.inf, 1e30], ids=['nan', 'inf', 'overflow']
)
def test_fault_15_a_bad_update_is_skipped_and_its_records_are_written_to_a_file(
  tmp_path, value
):
  bad = bad_stage(bad=(3, 4), value=value, bad_steps=2)
  final = loop.run(bad, str(tmp_path), make_mesh())
  assert int(final.step) == 8
  check_finite(final)
  third, fourth = bad_steps_of(tmp_path)
  assert third['step'] == 3
  assert third['records'] == [{'next': 2}]
  assert fourth['step'] == 4
  assert fourth['records'] == [{'next': 3}]
  assert 'loss/total' in third['not_finite']
  metrics = logged_metrics(tmp_path)
  assert [line.get('skipped') for line in metrics] == [0, 0, 1, 2, 2, 2, 2, 2]
  assert 'loss/total' not in metrics[third['step'] - 1]
  json.dumps(
    metrics, allow_nan=False
  )  # raises an error for a number that is not finite
  # A skipped update changes only the step number, on which the noise depends.
  two = loop.run(bad_stage(2), str(tmp_path / 'two'), make_mesh())
  skipped, _ = step(two, jnp.full(8, value, jnp.float32))
  assert same(skipped._replace(step=two.step), two)
  assert int(skipped.step) == 3


@pytest.mark.parametrize('bad_steps, failing_step', [(0, 3), (1, 4)])
def test_fault_15_one_more_than_allowed_ends_the_run_and_the_last_checkpoint_is_good(
  tmp_path, bad_steps, failing_step
):
  message = (
    rf'toy: .*loss/total (is|are) not finite at step {failing_step}; .* skipped, '
    rf'more than config\.toy\.bad_steps={bad_steps} allows; the records of the '
    'batch are in '
  )
  bad = bad_stage(bad=(3, 4), bad_steps=bad_steps)
  with pytest.raises(UserError, match=message):
    loop.run(bad, str(tmp_path), make_mesh())
  with Checkpoints(str(tmp_path), 'toy') as checkpoints:
    restored = checkpoints.resume(stage().state)
  assert int(restored.state.step) == 2
  check_finite(restored.state)


def test_fault_15_a_bad_loss_is_noticed_between_two_lines_of_the_log(tmp_path):
  bad = bad_stage(40, bad=(3,), log_every=20, save_every=20)
  with pytest.raises(UserError, match='not finite at step 3'):
    loop.run(bad, str(tmp_path), make_mesh())
  assert not logged_metrics(tmp_path)


def test_fault_15_a_state_that_is_not_finite_is_never_saved(tmp_path):
  """This holds for every array, and for damage after the guard."""

  def corrupted_step(state, batch):
    after, metrics = step(state, batch)
    bias = jnp.where(after.step == 4, jnp.nan, after.buffers['bias'])
    return after._replace(buffers={'bias': bias}), metrics

  message = r'step 4 is not saved: buffers\.bias is not finite'
  with pytest.raises(UserError, match=message):
    loop.run(stage(8, step_fn=corrupted_step), str(tmp_path), make_mesh())
  with Checkpoints(str(tmp_path), 'toy', read_only=True) as checkpoints:
    assert checkpoints.latest() == 2


def test_fault_15_the_real_step_keeps_its_state_after_a_bad_batch(kit, batch):
  corrupted = batch._replace(position_BL3=np.full_like(batch.position_BL3, np.nan))
  after, metrics = kit.step(kit.state, corrupted)
  assert int(metrics['skipped']) == 1
  assert not np.isfinite(metrics['loss/total'])
  assert same(after._replace(step=kit.state.step), kit.state)
  assert int(after.step) == int(kit.state.step) + 1
  after, metrics = kit.step(kit.state, batch)
  assert int(metrics['skipped']) == 0
  # Parameters would be the same: the first learning rate is zero.
  assert not same(after.opt_state, kit.state.opt_state)


BAD_ID = '2/0'


class NanPositions(ExampleMaker):
  """Makes examples of which one has positions that are NaN.

  Pixels and samples are bytes, which cannot be NaN.
  """

  def __call__(self, place):
    laid_out = super().__call__(place)
    if self.examples[place.example]['id'] != BAD_ID:
      return laid_out
    layout = laid_out.layout
    offset_n3 = np.full_like(layout.offset_n3, np.nan)
    return laid_out._replace(layout=layout._replace(offset_n3=offset_n3))


def test_fault_15_the_records_of_a_bad_batch_are_named(tmp_path, kit):
  """The real loader names the record that is bad, and the others in the same batch."""
  items = []
  for seed in range(4):
    for k, example in enumerate(examples(seed)):
      items.append(dict(example, id=f'{seed}/{k}'))
  maker = NanPositions(items, kit.config.hosts(), 0)
  batches = Loader(maker, BUDGET, LoaderConfig(lanes=2))
  options = STAGE_OPTIONS | dict(log_every=4, bad_steps=8)
  real = loop.Stage('omni', 8, kit.step, kit.state, batches, **options)
  loop.run(real, str(tmp_path), kit.mesh)
  lines = bad_steps_of(tmp_path)
  assert lines
  ids = {item['id'] for item in items}
  for line in lines:
    assert BAD_ID in line['records']
    assert 1 < len(line['records']) < 12, 'a batch of two rows has some of the records'
    assert set(line['records']) <= ids


def test_fault_15_a_repeated_step_detects_silent_corruption(tmp_path):
  calls = []

  def wrong_once(state, batch):
    after, metrics = step(state, batch)
    calls.append(int(after.step))
    is_repeated_step_4 = calls[-2:] == [4, 4]
    if is_repeated_step_4:
      w = np.array(after.params['decoder']['w'])
      w.view(np.uint32)[5, 6] ^= 1  # the last bit of one weight
      after = after._replace(params=after.params | {'decoder': {'w': jnp.asarray(w)}})
    return after, metrics

  wrong = stage(8, step_fn=wrong_once, repeat_every=2)
  message = (
    r'step 4 was computed twice .* 1 of \d+ arrays differs, the first is '
    r'params\.decoder\.w'
  )
  with pytest.raises(UserError, match=message):
    loop.run(wrong, str(tmp_path), make_mesh())
  assert calls == [1, 2, 2, 3, 4, 4]
  repeating = stage(8, step_fn=step, repeat_every=2)
  repeated = loop.run(repeating, str(tmp_path / 'repeated'), make_mesh())
  once = loop.run(stage(8, step_fn=step), str(tmp_path / 'once'), make_mesh())
  assert same(repeated, once)
