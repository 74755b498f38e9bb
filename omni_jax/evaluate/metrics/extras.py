"""Turns a missing optional package into one line that says what to install."""

from collections.abc import Iterator
import contextlib

from omni_jax.errors import UserError


@contextlib.contextmanager
def needs_extra() -> Iterator[None]:
  """Wraps imports of sklearn, jiwer and pystoi, which the extra [eval] installs.

  Raises:
    UserError: if the package is missing.
  """
  try:
    yield
  except ImportError as error:
    raise UserError(
      f"evaluation needs the package {error.name!r}: pip install 'omni_jax[eval]'"
    ) from error
