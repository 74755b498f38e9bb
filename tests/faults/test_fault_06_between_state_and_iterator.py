"""Fault 6: the process ends when some items of a step are written and others are not.

See also fault 2.
"""

import itertools
import shutil

from faults.toy import resume
import pytest

ITEMS = ('model', 'train', 'iterator', 'manifest.json')
INCOMPLETE = []
for count in range(len(ITEMS)):
  INCOMPLETE += itertools.combinations(ITEMS, count)


@pytest.mark.parametrize(
  'written', INCOMPLETE, ids=lambda items: '+'.join(items) or 'nothing'
)
def test_fault_06_a_step_counts_only_with_all_of_its_items_and_the_manifest(
  two_steps, tmp_path, written
):
  """The cases include a manifest without an item, which our order of writes prevents."""
  shutil.copytree(two_steps, tmp_path / 'run')
  step = tmp_path / 'run' / 'checkpoints' / 'toy' / '2'
  (step.parent / '2.unfinished').touch()
  for item in set(ITEMS) - set(written):
    if (step / item).is_dir():
      shutil.rmtree(step / item)
    else:
      (step / item).unlink()
  restored, lines = resume(tmp_path / 'run')
  assert int(restored.state.step) == 1
  message = 'was unfinished and has been removed'
  if 'manifest.json' in written:
    message = 'is damaged'
  assert len(lines) == 1
  assert message in lines[0]
  assert not step.exists()
