"""Evaluation gives the same metrics on eight devices as on one."""

import math

import jax
import pytest
import samples

from omni_jax.evaluate import run as evaluation
from omni_jax.evaluate.limits import Limits
from omni_jax.generate.api import load

LIMITS = Limits(n=9, n_images=6, n_any=2, n_codec=4)
NOT_MEASURED = ('seconds',)


def flat(value, name=''):
  """Yields (name, value) of every leaf of nested metrics."""
  if isinstance(value, dict):
    for key, item in value.items():
      yield from flat(item, f'{name}/{key}')
  elif isinstance(value, list):
    for index, item in enumerate(value):
      yield from flat(item, f'{name}/{index}')
  else:
    yield name, value


@pytest.fixture(scope='module')
def metrics_of(workdir, tmp_path_factory):
  """Returns a function from the sizes of a mesh to all metrics by name."""

  def evaluate(sizes):
    trained = load(str(workdir), mesh=sizes)
    out = tmp_path_factory.mktemp('out')
    quiet = dict(limits=LIMITS, log=lambda line: None)
    metrics = evaluation.run(trained, workdir, out, seed=1, **quiet)
    metrics['devices'] = trained.mesh.size
    return dict(flat(metrics))

  return evaluate


@pytest.fixture(scope='module')
def expected(metrics_of):
  return metrics_of({})


@pytest.mark.parametrize(
  'sizes', samples.mark_long_except([None, dict(data=2, tensor=4)], 0), ids=str
)
def test_metrics_do_not_depend_on_the_mesh(metrics_of, expected, sizes):
  """Replies are sampled: the keys belong to the prompts, wherever these are."""
  actual = metrics_of(sizes)
  assert actual.pop('/devices') == len(jax.local_devices())
  compared = 0
  for name, value in expected.items():
    if name == '/devices' or name.endswith(NOT_MEASURED):
      continue
    if isinstance(value, float):
      assert math.isclose(actual[name], value, rel_tol=1e-3, abs_tol=1e-5), name
    else:
      assert actual[name] == value, name
    compared += 1
  assert compared > 50
