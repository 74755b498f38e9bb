"""The --config of a command and its overrides, read with mistakes as one line."""

import sys
from typing import Any

from absl import flags

from omni_jax.errors import UserError


def read_config(values: flags.FlagValues) -> Any:
  """Reads the command line into the flags and returns their `config`, a ConfigDict, or None where it was not given."""
  try:
    values(sys.argv)
    config = values['config'].value
    if config is not None:
      config.to_dict()  # a file that cannot be loaded says so only now
  except (flags.Error, AttributeError, ImportError, KeyError, OSError, SyntaxError, TypeError, ValueError) as error:
    said = error.args[0] if isinstance(error, KeyError) else error  # a KeyError shows its text in quotes
    raise UserError(f'{said} (see --config and the overrides --config.name=value)') from error
  return config
