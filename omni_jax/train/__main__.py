"""Trains a model: `python -m omni_jax.train --config=configs/digits.py --workdir=DIR`.

Flags such as `--config.omni.optim.lr=1e-3` override values of the config.
"""

from absl import flags, logging
from ml_collections import config_flags, ConfigDict

from omni_jax.command_line import CONFIG_HELP
from omni_jax.config import read_config
from omni_jax.errors import run_command, UserError
from omni_jax.train.start import start_jax

config_flags.DEFINE_config_file('config', help_string=CONFIG_HELP, lock_config=True)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; a run resumes where it stopped in that folder.'
)


def parse() -> tuple[ConfigDict, str]:
  """Returns config and workdir of the command line; launch/lr_find.py uses it as well.

  Raises:
    UserError: if one of them is missing.
  """
  config = read_config(flags.FLAGS)
  if config is None or not _WORKDIR.value:
    raise UserError('give --config=configs/digits.py and --workdir=DIR')
  return config, _WORKDIR.value


def main() -> None:
  config, workdir = parse()
  logging.set_verbosity(logging.ERROR)  # Orbax reports every file that it touches
  start_jax(config)
  import jax

  # Imported only now that the devices are set up.
  from omni_jax.train.processes import leave
  from omni_jax.train.stages import run_all

  try:
    run_all(config, workdir)
  except Exception as error:
    if not jax.distributed.is_initialized():  # no other process waits for this one
      raise
    leave(error)


if __name__ == '__main__':
  run_command(main)
