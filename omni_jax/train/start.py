"""Sets up jax for a run, before it looks for devices."""

import os

from ml_collections import ConfigDict


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
