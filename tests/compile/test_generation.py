"""Writing an id takes hardly longer than reading the weights and the cache once."""

import importlib.util

import pytest
from samples import config as config_of

from omni_jax.checkpoint.placement import generation_mesh
from omni_jax.compile import topology
from omni_jax.compile.measure import make_plan, measure_programs
from omni_jax.compile.roofline import COLLECTIVE_SECONDS

pytestmark = pytest.mark.skipif(
  not importlib.util.find_spec('libtpu'),
  reason='libtpu is not installed; pip install "jax[tpu]"',
)
SLACK = 1.5
RUNS = [
  ('omni_1b', 'v5e:4x4'),
  ('omni_8x7b', 'v5p:4x4x4'),
  ('omni_30b_a3b', 'v5p:4x4x2'),
]


def decode(config, name):
  """Returns the measurement of the decode loop on the mesh that suits the model."""
  chips = topology.describe(name)
  plan = make_plan(config, chips)
  mesh = generation_mesh(plan.model_config, None, chips.devices)
  (measurement,) = measure_programs(plan, chips, ['decode'], mesh)
  return measurement


def check(measurement):
  """Checks the time of an id, with the latency of collectives in place of their bytes."""
  counts = [traffic.count for traffic in measurement.estimate.traffic]
  latency = sum(counts) * COLLECTIVE_SECONDS
  reading = measurement.floor - latency
  assert reading > 0
  assert measurement.estimate.core <= SLACK * reading
  assert measurement.estimate.scheduled <= SLACK * reading + latency


@pytest.mark.long
@pytest.mark.parametrize('name, chips', RUNS, ids=str)
def test_an_id_takes_as_long_as_reading_what_it_needs(name, chips):
  check(decode(config_of(name), chips))


def test_a_shallow_model_on_eight_chips():
  """Four layers of omni_1b, whose prompts all chips share."""
  config = config_of('omni_1b').unlock()
  config.model.decoder.layers = 4
  config.model.image.head.layers = 1
  config.model.audio.head.layers = 1
  config.data.budget.rows = 8
  config.codec.batch = 8
  check(decode(config, 'v5e:2x4'))
