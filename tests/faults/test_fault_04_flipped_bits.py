"""Fault 4: a flipped bit in a checkpoint never becomes a weight.

Training falls back to an earlier step with a warning; readers do so too, or refuse a
step that was requested by number.
"""

import re
import shutil

from faults.storage import data_files, files_read, flip, flip_in_arrays, pick
from faults.toy import initial_state, model_of, resume, same, state_at
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.checkpoint import digest
from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.errors import UserError

FLIPS = 75
# A line that names an array, and both digests or the error.
NAMES_AN_ARRAY = re.compile(
  r'array (params|opt_state|buffers|step|rng)[\w.]* '
  r'(has digest [0-9a-f]{16}, but [0-9a-f]{16} was saved|cannot be read)'
)


@pytest.fixture
def workdir(two_steps, tmp_path):
  """Returns the folder of a run with steps 1 and 2, which a test may damage."""
  shutil.copytree(two_steps, tmp_path / 'run')
  return tmp_path / 'run'


def test_fault_04_all_of_75_flips_in_the_data_are_caught_and_the_step_before_is_used(
  two_steps, tmp_path
):
  """Flips bits of the files with arrays, in proportion to their sizes.

  Orbax alone silently restored wrong values in 75 of 75 cases.
  """
  rng = np.random.default_rng(0)
  naming_lines = 0
  for k in range(FLIPS):
    workdir = tmp_path / str(k)
    shutil.copytree(two_steps, workdir)
    folder = workdir / 'checkpoints' / 'toy'
    path = pick(data_files(folder / '2'), rng)
    flip(path, rng)
    restored, lines = resume(workdir)
    assert same(restored.state, state_at(1)), f'flip {k} in {path}'
    assert len(lines) == 1, lines
    assert 'WARNING' in lines[0]
    assert 'step 1 is used instead' in lines[0]
    assert not (folder / '2').exists()
    assert (folder / 'quarantine' / '2.0' / 'why.txt').exists()
    if NAMES_AN_ARRAY.search(lines[0]):
      naming_lines += 1
  assert naming_lines > FLIPS // 2, f'only {naming_lines} lines name an array'


def test_fault_04_a_flip_in_any_file_of_a_step_is_caught(two_steps, tmp_path):
  """Except for the two that Orbax writes after the manifest, and that nobody reads."""
  rng = np.random.default_rng(1)
  step = two_steps / 'checkpoints' / 'toy' / '2'
  paths = files_read(step)
  assert len(paths) > 15
  for k, path in enumerate(paths):
    name = path.relative_to(two_steps)
    workdir = tmp_path / str(k)
    shutil.copytree(two_steps, workdir)
    flip(workdir / name, rng)
    restored, lines = resume(workdir)
    assert int(restored.state.step) == 1, name
    assert lines, name


def test_fault_04_readers_fall_back_with_a_warning_and_refuse_a_requested_step(
  workdir, capsys
):
  step = workdir / 'checkpoints' / 'toy' / '2'
  flip_in_arrays(step / 'model', seed=2)
  like = model_of(initial_state())
  message = r'toy/2 is damaged: .*params\.decoder\.w.*; choose another step of \[1, 2\]'
  with Checkpoints(str(workdir), 'toy', read_only=True) as checkpoints:
    model, restored_step = checkpoints.restore_model(like)
    assert restored_step == 1
    assert same(model['params'], state_at(1).params)
    with pytest.raises(UserError, match=message):
      checkpoints.restore_model(like, 2)
  err = capsys.readouterr().err
  assert err.count('WARNING') == 1
  assert 'params.decoder.w' in err
  assert 'step 1 is used instead' in err
  assert step.exists(), 'readers must not move anything'


def test_fault_04_one_flip_in_memory_changes_the_digest_of_its_array_only():
  """The flips are in random elements and bits of the copy that Orbax writes.

  Such a flip happens between the devices and the disk.
  """
  rng = np.random.default_rng(3)
  w = jax.random.normal(jax.random.key(0), (33, 7))
  tree = {'w': w, 'other': jnp.ones(3)}
  original = digest.digests(tree)
  for _ in range(200):
    bits = np.asarray(w).copy().view(np.uint32).reshape(-1)
    bits[rng.integers(bits.size)] ^= np.uint32(1) << np.uint32(rng.integers(32))
    tree['w'] = jnp.asarray(bits.view(np.float32).reshape(33, 7))
    changed = digest.digests(tree)
    assert changed['w'] != original['w']
    assert changed['other'] == original['other']


def test_fault_04_swapped_values_change_the_digest():
  rows = jax.random.normal(jax.random.key(0), (4, 5))
  first = rows[0, 0]
  second = rows[0, 1]
  first_two_swapped = jnp.where(
    rows == first, second, jnp.where(rows == second, first, rows)
  )
  other_sign = rows.at[0, 0].set(-first)
  arrays = (rows, rows[::-1], rows.T, other_sign, first_two_swapped)
  digests = {digest.digests({'w': x})['w'] for x in arrays}
  assert len(digests) == len(arrays)


def test_fault_04_a_run_without_a_good_step_is_refused_now_and_at_the_next_start(
  workdir,
):
  folder = workdir / 'checkpoints' / 'toy'
  flip_in_arrays(folder / '1', seed=4)
  flip_in_arrays(folder / '2', seed=4)
  message = (
    r'no good step in .*step 2: array params\.decoder\.w.*step 1: .*; '
    'restore one from a backup, or remove'
  )
  with pytest.raises(UserError, match=message):
    resume(workdir)
  with pytest.raises(UserError, match='all were moved to quarantine before'):
    resume(workdir)
  assert (folder / 'quarantine' / '1.0').is_dir()
