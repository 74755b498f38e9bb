"""Turns the compilation cache off, which cannot hold programs for absent devices."""

import jax
import pytest


@pytest.fixture(autouse=True)
def no_cache():
  """Turns the compilation cache off during a test."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  yield
  jax.config.update('jax_enable_compilation_cache', before)
