"""Turns a missing optional package into one line that says what to install."""

import contextlib

from omni_jax.errors import UserError


@contextlib.contextmanager
def needs_extra():
  """Wraps the imports of sklearn, jiwer and pystoi: they come with the extra [eval], not with the core."""
  try:
    yield
  except ImportError as error:
    raise UserError(
      f"evaluation needs the package {error.name!r}: pip install 'omni_jax[eval]'"
    ) from error
