"""Measures the speed of this machine with omni_jax, and beside other libraries.

python -m omni_jax.bench data --config=F      the cost of data loading
python -m omni_jax.bench step --config=F      the train step, beside PyTorch
python -m omni_jax.bench gpu                  kernels, steps and start-up on a GPU

Each of them answers --help with its flags.
"""

import sys

from omni_jax.errors import run_command, UserError


def _data() -> None:
  from omni_jax.bench import data_command

  data_command.main()


def _step() -> None:
  from omni_jax.bench import step

  step.main()


def _gpu() -> None:
  from omni_jax.bench import gpu

  gpu.main()


# Imported when they are called: each needs packages that the others do not.
BENCHES = {'data': _data, 'step': _step, 'gpu': _gpu}


def main() -> None:
  name = sys.argv.pop(1) if len(sys.argv) > 1 else ''
  if name in ('-h', '--help'):
    print((__doc__ or '').strip())
    return
  if name not in BENCHES:
    raise UserError(
      f'python -m omni_jax.bench: unknown benchmark {name!r}; give one of '
      f'{", ".join(BENCHES)}'
    )
  BENCHES[name]()


if __name__ == '__main__':
  run_command(main)
