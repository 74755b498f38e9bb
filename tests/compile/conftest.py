"""Programs for devices that are not there cannot be read back from the compilation cache."""

import jax
import pytest


@pytest.fixture(autouse=True)
def no_cache():
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  yield
  jax.config.update('jax_enable_compilation_cache', before)
