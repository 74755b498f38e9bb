"""Fault 4: a flipped bit in a checkpoint never comes back as a weight; training falls back aloud, readers refuse or do."""

import pathlib
import re
import shutil

from faults.storage import data_files, flip, pick
from faults.toy import fresh, resumed, same, states
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.checkpoint import digest
from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.errors import UserError

FLIPS = 75


@pytest.fixture
def copy(two_steps, tmp_path):
  shutil.copytree(two_steps, tmp_path / 'run')
  return tmp_path / 'run'


def test_fault_04_all_of_75_flips_in_the_data_are_caught_and_the_step_before_is_used(
  two_steps, tmp_path
):
  """Every flip somewhere in the files with arrays, by their size. Orbax alone restored 75 of 75 silently wrong."""
  (before, _), rng, named = states(1, 2), np.random.default_rng(0), 0
  for k in range(FLIPS):
    workdir = tmp_path / str(k)
    shutil.copytree(two_steps, workdir)
    step = workdir / 'checkpoints' / 'toy' / '2'
    path = pick(data_files(step), rng)
    flip(path, rng)
    found, said = resumed(workdir)
    assert same(found.state, before), f'flip {k} in {path}'
    assert (
      len(said) == 1 and 'WARNING' in said[0] and 'step 1 is used instead' in said[0]
    ), said
    assert (
      not step.exists()
      and (workdir / 'checkpoints' / 'toy' / 'quarantine' / '2.0' / 'why.txt').exists()
    )
    named += bool(
      re.search(
        r'array (params|opt_state|buffers|step|rng)[\w.]* (has digest [0-9a-f]{16}, saved was [0-9a-f]{16}|cannot be read)',
        said[0],
      )
    )
  assert named > FLIPS // 2, f'only {named} lines name an array'


def test_fault_04_a_flip_in_any_file_of_a_step_is_caught(two_steps, tmp_path):
  """But the two that Orbax writes after the manifest, and that nobody reads."""
  rng = np.random.default_rng(1)
  names = [
    path.relative_to(two_steps)
    for path in (two_steps / 'checkpoints' / 'toy' / '2').rglob('*')
    if path.is_file()
    and path.relative_to(two_steps).parts[3:]
    not in (('_CHECKPOINT_METADATA',), ('commit_success.txt',))
  ]
  assert len(names) > 15
  for k, name in enumerate(names):
    shutil.copytree(two_steps, tmp_path / str(k))
    flip(tmp_path / str(k) / name, rng)
    found, said = resumed(tmp_path / str(k))
    assert int(found.state.step) == 1 and said, name


def test_fault_04_readers_fall_back_aloud_and_refuse_a_step_that_is_named(copy, capsys):
  step = copy / 'checkpoints' / 'toy' / '2'
  flip(
    max(data_files(step / 'model'), key=lambda path: path.stat().st_size),
    np.random.default_rng(2),
  )
  like = {'params': fresh().params, 'buffers': fresh().buffers}
  with Checkpoints(str(copy), 'toy', read_only=True) as checkpoints:
    found, used = checkpoints.restore_model(like)
    assert used == 1 and same(found['params'], states(1)[0].params)
    with pytest.raises(
      UserError,
      match=r'toy/2 is damaged: .*params\.decoder\.w.*; take another step of \[1, 2\]',
    ):
      checkpoints.restore_model(like, 2)
  err = capsys.readouterr().err
  assert (
    err.count('WARNING') == 1
    and 'params.decoder.w' in err
    and 'step 1 is used instead' in err
  )
  assert step.exists(), 'readers move nothing'


def test_fault_04_one_flip_in_memory_changes_the_digest_of_its_array_only():
  """Between the devices and the disk: a flip in the copy that Orbax writes is found, too, as in any element and bit."""
  rng = np.random.default_rng(3)
  w = jax.random.normal(jax.random.key(0), (33, 7))
  tree = {'w': w, 'other': jnp.ones(3)}
  right = digest.digests(tree)
  for _ in range(200):
    bits = np.asarray(w).copy().view(np.uint32).reshape(-1)
    bits[rng.integers(bits.size)] ^= np.uint32(1) << np.uint32(rng.integers(32))
    wrong = digest.digests(
      tree | {'w': jnp.asarray(bits.view(np.float32).reshape(33, 7))}
    )
    assert wrong['w'] != right['w'] and wrong['other'] == right['other']


def test_fault_04_two_arrays_in_the_place_of_each_other_are_noticed():
  rows = jax.random.normal(jax.random.key(0), (4, 5))
  digests = {
    digest.digests({'w': x})['w']
    for x in (
      rows,
      rows[::-1],
      rows.T,
      rows.at[0, 0].set(-rows[0, 0]),
      jnp.where(
        rows == rows[0, 0], rows[0, 1], jnp.where(rows == rows[0, 1], rows[0, 0], rows)
      ),
    )
  }
  assert len(digests) == 5


def test_fault_04_without_a_good_step_it_is_refused_now_and_at_the_next_start(copy):
  for step in ('1', '2'):
    path = max(
      data_files(copy / 'checkpoints' / 'toy' / step),
      key=lambda path: path.stat().st_size,
    )
    flip(path, np.random.default_rng(4))
  for message in (
    r'no good step in .*step 2: array params\.decoder\.w.*step 1: .*; restore one from a copy, or remove',
    'all were put aside before',
  ):
    with pytest.raises(UserError, match=message):
      resumed(copy)
  assert pathlib.Path(copy / 'checkpoints' / 'toy' / 'quarantine' / '1.0').is_dir()
