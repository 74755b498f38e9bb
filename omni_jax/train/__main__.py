"""Trains a model: `python -m omni_jax.train --config=configs/digits.py --workdir=DIR`.

Flags such as `--config.omni.optim.lr=1e-3` override values of the config.
"""

import os

from absl import flags, logging
from ml_collections import config_flags, ConfigDict

from omni_jax.command_line import CONFIG_HELP
from omni_jax.config import read_config
from omni_jax.errors import run_command, UserError

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


def start_jax(config: ConfigDict) -> None:
  """Sets up jax: its devices, its compilation cache and the other processes.

  Several CPU devices share one thread pool, by default with one thread per core. A
  device that waits in an all-reduce and another one that waits for a free thread then
  deadlock (seen with two devices on two cores). Spare threads, one program at a time and
  no threads inside operations prevent it. The last is also faster: 2.4 instead of 1.5
  steps per second of configs/digits.py on two busy cores.
  """
  environment = dict(os.environ)
  several_cpu_devices = config.cpu_devices > 1
  if several_cpu_devices:
    os.environ.setdefault('PJRT_NPROC', str(2 * config.cpu_devices))
    xla_flags = os.environ.get('XLA_FLAGS', '')
    xla_flags = f'{xla_flags} --xla_cpu_multi_thread_eigen=false'
    os.environ['XLA_FLAGS'] = xla_flags.strip()
  import jax

  if several_cpu_devices:
    # No effect if an accelerator is found.
    jax.config.update('jax_num_cpu_devices', config.cpu_devices)
  if several_cpu_devices or config.distributed:
    # Programs that wait for each other have to run in one order.
    jax.config.update('jax_cpu_enable_async_dispatch', False)
  if config.compilation_cache:
    folder = os.path.expanduser(config.compilation_cache)
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  if config.distributed:
    from omni_jax.train.processes import join

    join()
  # It reads the environment, which the workers of the loader must not inherit.
  jax.devices()
  os.environ.clear()
  os.environ.update(environment)


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
