"""Fault 6: the process ends when some items of a step are written and others are not; see also fault 2."""

import itertools
import shutil

from faults.toy import resumed
import pytest

ITEMS = ('model', 'train', 'iterator', 'manifest.json')
SOME = [some for n in range(len(ITEMS)) for some in itertools.combinations(ITEMS, n)]


@pytest.mark.parametrize('written', SOME, ids=lambda some: '+'.join(some) or 'nothing')
def test_fault_06_a_step_counts_only_with_all_of_its_items_and_the_manifest(
  two_steps, tmp_path, written
):
  """Also with the manifest and without an item, which no order of writes of ours leaves behind."""
  shutil.copytree(two_steps, tmp_path / 'run')
  step = tmp_path / 'run' / 'checkpoints' / 'toy' / '2'
  (step.parent / '2.unfinished').touch()
  for item in set(ITEMS) - set(written):
    shutil.rmtree(step / item) if (step / item).is_dir() else (step / item).unlink()
  found, said = resumed(tmp_path / 'run')
  assert int(found.state.step) == 1
  assert (
    len(said) == 1
    and (
      'is damaged' if 'manifest.json' in written else 'was not finished and is removed'
    )
    in said[0]
  )
  assert not step.exists()
