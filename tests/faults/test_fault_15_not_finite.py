"""Fault 15: a loss or gradient that is not finite: left out or the end by policy, records written out, never saved."""

import json

from faults.toy import logged, Numbers, same, stage, update
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import BUDGET, examples

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.config import LoaderConfig
from omni_jax.data.loader import Loader
from omni_jax.data.making import Making
from omni_jax.errors import UserError
from omni_jax.sharding import make_mesh
from omni_jax.train import loop
from omni_jax.train.numerics import guarded


@jax.jit
def step(state, batch):
  after, metrics = update(state, batch)
  return guarded(state, after, metrics | {'grad_norm/total': metrics['loss/total']})


def bad_stage(steps=8, bad=(), value=np.nan, **options):
  return stage(
    steps, batches=Numbers(replace=dict.fromkeys(bad, value)), step_fn=step, **options
  )


@pytest.mark.parametrize(
  'value', [np.nan, np.inf, 1e30], ids=['nan', 'inf', 'overflow']
)
def test_fault_15_a_bad_update_is_left_out_and_its_records_are_written_out(
  tmp_path, value
):
  done = loop.run(
    bad_stage(bad=(3, 4), value=value, bad_steps=2), str(tmp_path), make_mesh()
  )
  assert int(done.step) == 8 and all(
    np.isfinite(x).all() for x in jax.tree.leaves(done)
  )
  dumped = [
    json.loads(line) for line in (tmp_path / 'bad_steps.jsonl').read_text().splitlines()
  ]
  assert [(line['step'], line['records']) for line in dumped] == [
    (3, [{'next': 2}]),
    (4, [{'next': 3}]),
  ]
  assert 'loss/total' in dumped[0]['not_finite']
  assert [line.get('skipped') for line in logged(tmp_path)] == [0, 0, 1, 2, 2, 2, 2, 2]
  assert 'loss/total' not in logged(tmp_path)[2] and json.loads(
    json.dumps(logged(tmp_path), allow_nan=False)
  )
  # As if these batches had not been there, but for the number of the step, which the noise and so all after it hang on.
  two = loop.run(bad_stage(2), str(tmp_path / 'two'), make_mesh())
  left_out, _ = step(two, jnp.full(8, value, jnp.float32))
  assert same(left_out._replace(step=two.step), two) and int(left_out.step) == 3


@pytest.mark.parametrize('bad_steps, at', [(0, 3), (1, 4)])
def test_fault_15_one_more_than_allowed_ends_the_run_and_the_last_checkpoint_is_good(
  tmp_path, bad_steps, at
):
  with pytest.raises(
    UserError,
    match=rf'toy: .*loss/total is no longer finite at step {at}; .* config\.toy\.bad_steps={bad_steps} are allowed',
  ):
    loop.run(bad_stage(bad=(3, 4), bad_steps=bad_steps), str(tmp_path), make_mesh())
  with Checkpoints(str(tmp_path), 'toy') as checkpoints:
    found = checkpoints.resume(stage().state)
  assert int(found.state.step) == 2 and all(
    np.isfinite(x).all() for x in jax.tree.leaves(found.state)
  )


def test_fault_15_it_is_noticed_between_two_lines_of_the_log_too(tmp_path):
  with pytest.raises(UserError, match='no longer finite at step 3'):
    loop.run(
      bad_stage(40, bad=(3,), log_every=20, save_every=20), str(tmp_path), make_mesh()
    )
  assert not logged(tmp_path)


def test_fault_15_a_state_that_is_not_finite_is_never_saved(tmp_path):
  """Whatever became of it after the guard, and in whichever array."""

  def spoilt(state, batch):
    after, metrics = step(state, batch)
    bias = jnp.where(after.step == 4, jnp.nan, after.buffers['bias'])
    return after._replace(buffers={'bias': bias}), metrics

  with pytest.raises(
    UserError, match=r'step 4 is not saved: buffers\.bias is not finite'
  ):
    loop.run(stage(8, step_fn=spoilt), str(tmp_path), make_mesh())
  with Checkpoints(str(tmp_path), 'toy', read_only=True) as checkpoints:
    assert checkpoints.latest() == 2


def test_fault_15_the_real_step_keeps_its_state(kit, batch):
  spoilt = batch._replace(position_BL3=np.full_like(batch.position_BL3, np.nan))
  after, metrics = kit.step(kit.state, spoilt)
  assert int(metrics['skipped']) == 1 and not np.isfinite(metrics['loss/total'])
  assert (
    same(after._replace(step=kit.state.step), kit.state)
    and int(after.step) == int(kit.state.step) + 1
  )
  after, metrics = kit.step(kit.state, batch)
  assert int(metrics['skipped']) == 0 and not same(
    after.opt_state, kit.state.opt_state
  )  # its first rate is zero


class Spoilt(Making):
  """Positions of no number in one record: pixels and samples are bytes, where there is none."""

  def __call__(self, place):
    made = super().__call__(place)
    if self.examples[place.example]['id'] != '2/0':
      return made
    offset_n3 = np.full_like(made.layout.offset_n3, np.nan)
    return made._replace(layout=made.layout._replace(offset_n3=offset_n3))


def test_fault_15_the_records_of_a_bad_batch_are_named(tmp_path, kit):
  """With the real loader: the one that is spoilt, and what lies in the same batch."""
  items = [
    dict(example, id=f'{seed}/{i}')
    for seed in range(4)
    for i, example in enumerate(examples(seed))
  ]
  making = Spoilt(items, kit.config.hosts(), 0)
  batches = Loader(making, BUDGET, LoaderConfig(lanes=2))
  real = loop.Stage(
    'omni', 8, kit.step, kit.state, batches, log_every=4, save_every=100, bad_steps=8
  )
  loop.run(real, str(tmp_path), kit.mesh)
  dumped = [
    json.loads(line) for line in (tmp_path / 'bad_steps.jsonl').read_text().splitlines()
  ]
  assert dumped and all('2/0' in line['records'] for line in dumped)
  assert all(
    1 < len(line['records']) < 12
    and set(line['records']) <= {item['id'] for item in items}
    for line in dumped
  )


def test_fault_15_a_step_made_twice_finds_silent_corruption(tmp_path):
  calls = []

  def wrong_once(state, batch):
    after, metrics = step(state, batch)
    calls.append(int(after.step))
    if calls.count(4) == 2 and calls[-1] == 4:
      w = np.array(after.params['decoder']['w'])
      w.view(np.uint32)[5, 6] ^= 1  # the last bit of one weight
      after = after._replace(params=after.params | {'decoder': {'w': jnp.asarray(w)}})
    return after, metrics

  with pytest.raises(
    UserError,
    match=r'step 4 was computed twice .* 1 arrays differ, first params\.decoder\.w',
  ):
    loop.run(stage(8, step_fn=wrong_once, repeat_every=2), str(tmp_path), make_mesh())
  assert calls == [1, 2, 2, 3, 4, 4]
  right = loop.run(
    stage(8, step_fn=step, repeat_every=2), str(tmp_path / 'right'), make_mesh()
  )
  assert same(
    right, loop.run(stage(8, step_fn=step), str(tmp_path / 'once'), make_mesh())
  )
