"""`python -m omni_jax.train --config=configs/digits.py --workdir=DIR [--config.omni.optim.lr=1e-3 …]`"""

import os

from absl import flags, logging
from ml_collections import config_flags

from omni_jax.config import read_config
from omni_jax.errors import run_command, UserError

config_flags.DEFINE_config_file('config', lock_config=True)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; the same folder goes on where it stopped.'
)


def parse() -> tuple:
  """(config, workdir) of the command line; also of launch/lr_find.py."""
  config = read_config(flags.FLAGS)
  if config is None or not _WORKDIR.value:
    raise UserError('give --config=configs/digits.py and --workdir=DIR')
  return config, _WORKDIR.value


def start_jax(config) -> None:
  """Devices and compilation cache.

  Several CPU devices share one pool of threads, by default one per core. A device that waits in an all-reduce and
  another that waits for a free thread then stop each other for ever (seen with two devices on two cores): threads to
  spare, one program at a time and no threads inside operations prevent it. The last is also faster: 2.4 instead of 1.5
  steps a second of configs/digits.py on two busy cores.
  """
  before = dict(os.environ)
  if config.cpu_devices > 1:
    os.environ.setdefault('PJRT_NPROC', str(2 * config.cpu_devices))
    os.environ['XLA_FLAGS'] = (
      f'{os.environ.get("XLA_FLAGS", "")} --xla_cpu_multi_thread_eigen=false'.strip()
    )
  import jax

  if config.cpu_devices > 1:
    jax.config.update(
      'jax_num_cpu_devices', config.cpu_devices
    )  # no effect where an accelerator is found
  if config.cpu_devices > 1 or config.distributed:
    jax.config.update(
      'jax_cpu_enable_async_dispatch', False
    )  # programs that wait for each other, in one order
  if config.compilation_cache:
    jax.config.update(
      'jax_compilation_cache_dir', os.path.expanduser(config.compilation_cache)
    )
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  if config.distributed:
    from omni_jax.train.processes import join

    join()
  jax.devices()  # reads the environment, which workers of the loader must not inherit
  os.environ.clear()
  os.environ.update(before)


def main() -> None:
  config, workdir = parse()
  logging.set_verbosity(logging.ERROR)  # Orbax reports every file that it touches
  start_jax(config)
  import jax

  from omni_jax.train.processes import leave
  from omni_jax.train.stages import run_all  # after the devices are set up

  try:
    run_all(config, workdir)
  except Exception as error:
    if not jax.distributed.is_initialized():  # no other process waits for this one
      raise
    leave(error)


if __name__ == '__main__':
  run_command(main)
