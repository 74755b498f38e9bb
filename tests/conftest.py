"""Sets up jax before it starts, and provides small models to all tests.

Tests run on eight CPU devices, with type checks, fast compilation and a compilation
cache.
"""

import os
import pathlib
import tempfile

# The cache is shared by the workers of pytest-xdist, by the commands that tests start,
# and by later runs.
DEFAULT_CACHE = f'{tempfile.gettempdir()}/omni_jax_test_cache'
CACHE = pathlib.Path(os.environ.setdefault('OMNI_JAX_TEST_CACHE', DEFAULT_CACHE))
os.environ.setdefault('HYPOTHESIS_STORAGE_DIRECTORY', str(CACHE / 'hypothesis'))
# Tests spend far more time compiling than computing. This reduces only LLVM's
# optimisation; the programs are the same.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

# The eight devices wait for each other in a single thread pool: see
# omni_jax/train/__main__.py.
os.environ.setdefault('PJRT_NPROC', '16')

import jaxtyping  # noqa: E402

# Checks every annotation of the package at run time. Tests only, because it costs time.
jaxtyping.install_import_hook('omni_jax', 'typecheck.check')

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_cpu_enable_async_dispatch', False)
jax.config.update('jax_compilation_cache_dir', str(CACHE / 'xla'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)

hypothesis.settings.register_profile(
  'same_every_time', database=None, deadline=None, derandomize=True
)
hypothesis.settings.load_profile('same_every_time')


def pytest_addoption(parser: pytest.Parser) -> None:
  parser.addoption(
    '--regenerate',
    action='store_true',
    help='rewrite tests/golden/*.txt with the current results of the code',
  )
  parser.addoption(
    '--long',
    action='store_true',
    help='run all cases: twenty kills instead of three, every bit flip, every mesh',
  )


def pytest_collection_modifyitems(
  config: pytest.Config, items: list[pytest.Item]
) -> None:
  if not config.getoption('--long'):
    for item in items:
      if item.get_closest_marker('long'):
        item.add_marker(
          pytest.mark.skip(reason='one of many similar cases: runs only with --long')
        )


@pytest.fixture
def no_rank_promotion():
  """Forbids implicit rank promotion: pure functions have to broadcast explicitly."""
  with jax.numpy_rank_promotion('raise'):
    yield


@pytest.fixture(scope='session')
def kit():
  """Returns a tiny model on one device, with the optimizer of a short run."""
  from samples import make_kit, omni_optimizer, part, tiny_model

  config = tiny_model()
  optim = part('omni.optim', kind='adamw', warmup=5)
  return make_kit(config, omni_optimizer(config, 200, optim))


@pytest.fixture(scope='session')
def batch(kit):
  """Returns a batch of every kind of example, packed into two rows."""
  from samples import laid_out_examples, packed_batch

  return packed_batch(laid_out_examples(kit.config), kit.config.hosts())


@pytest.fixture(scope='session')
def trained_state(kit, batch):
  """Returns the state after five updates, when no weight is exactly zero any more."""
  state = kit.state
  for _ in range(5):
    state, _ = kit.step(state, batch)
  return state
