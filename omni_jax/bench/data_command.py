"""Measures the cost of data loading on this machine.

python -m omni_jax.bench data --config=F [--config.name=value …]

It reports the CPU time per example against that of decoding its media in a bare loop of
Pillow and soundfile, how full the rows are, and examples and packed tokens per second.

--workers=0,1,2    numbers of worker processes to try
--examples=2000    number of examples to measure with
--corpus=1.0       also writes this many GB of synthetic records and reads them, to see
                   that memory does not grow with their size
--peers            also reads the same files through Hugging Face datasets and a PyTorch
                   DataLoader
--out=FILE.json    also writes the results to a file
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import sys
import tempfile
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from omni_jax.bench import corpus, data, peers
from omni_jax.command_line import CONFIG_HELP, show_help
from omni_jax.config import read_config
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.errors import run_command, UserError
from omni_jax.paths import checked
from omni_jax.train.stages import maker_of, Run
from omni_jax.types import RowBudget

_FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
  'config', help_string=CONFIG_HELP, lock_config=True, flag_values=_FLAGS
)
flags.DEFINE_list(
  'workers', ['0', '1', '2'], 'numbers of worker processes to try', flag_values=_FLAGS
)
flags.DEFINE_integer(
  'examples',
  2000,
  'number of examples to measure with',
  lower_bound=100,
  flag_values=_FLAGS,
)
flags.DEFINE_float(
  'corpus',
  0.0,
  'GB of synthetic records to write and read; 0 for none',
  lower_bound=0,
  flag_values=_FLAGS,
)
flags.DEFINE_bool(
  'peers',
  False,
  'also measure Hugging Face datasets with a PyTorch DataLoader',
  flag_values=_FLAGS,
)
flags.DEFINE_string('out', '', 'JSON file for the results', flag_values=_FLAGS)


def _data(run: Run) -> dict[str, Any]:
  """Measures data loading as the flags say, and returns the results as plain values."""
  workers = []
  for number in _FLAGS.workers:
    if not number.isdecimal():
      raise UserError(
        f'--workers={",".join(_FLAGS.workers)}: give numbers of processes, such as 0,1,2'
      )
    workers.append(int(number))
  examples = _FLAGS.examples
  fresh_maker = functools.partial(maker_of, run)
  overhead = data.measure_overhead(fresh_maker, run.budget, examples)
  rates = _rates(fresh_maker, run.budget, workers)
  data.log_costs(overhead, rates)
  results: dict[str, Any] = {
    'overhead': dataclasses.asdict(overhead),
    'rates': _plain(rates),
  }
  if _FLAGS.peers:
    print('without augmentation, which the peers do not have:')
    unaugmented = lambda: fresh_maker()._replace(augment=None)
    rates = _rates(unaugmented, run.budget, workers)
    data.log_rates(rates)
    results['peers'] = peers.measure_peers(fresh_maker(), workers, examples, print)
    results['rates_without_augmentation'] = _plain(rates)
  if _FLAGS.corpus:
    with tempfile.TemporaryDirectory(prefix='omni_jax_bench_') as folder:
      results['memory'] = corpus.measure_peaks(
        folder, _FLAGS.corpus, fresh_maker(), run.budget, print
      )
  return results


def _rates(
  fresh_maker: Callable[[], ExampleMaker], budget: RowBudget, workers: Sequence[int]
) -> list[data.Rate]:
  """Returns the rates of a loader, one for each number of worker processes."""
  examples = _FLAGS.examples
  return [
    data.measure_rate(fresh_maker(), budget, workers=count, examples=examples)
    for count in workers
  ]


def _plain(rates: Sequence[data.Rate]) -> list[dict[str, Any]]:
  return [dataclasses.asdict(rate) for rate in rates]


def main() -> None:
  show_help(_FLAGS, sys.argv, __doc__)
  config = read_config(_FLAGS)
  if config is None:
    raise UserError('give a config, such as --config=configs/digits.py')
  results = _data(Run(config, ''))
  if _FLAGS.out:
    epath.Path(checked(_FLAGS.out, '--out')).write_text(
      json.dumps(results, indent=1) + '\n'
    )


if __name__ == '__main__':
  run_command(main)
