"""Compiles a run's programs for chips that are elsewhere, and says what they take.

`python -m omni_jax.compile --config=configs/F.py --topology=v5p:4x4x4`

  --topology=T      KIND:SIDES, such as v5e:4x4, v5p:4x4x4, 2xv5p:4x4x4 (two slices) or
                    cpu:8 (pretended CPU devices)
  --programs=A,B    of train, prefill, decode, draw (default: all)
  --search          tries rows a chip, remat and mesh splits: what fits, and how long a
                    step takes
  --buffers=N       lists the N largest temporaries at the peak
  --work=N          lists the N parts that take most time
  --json            prints one JSON object instead of text
  --dump=DIR        keeps what the compiler writes down
  --config.a.b=c    as in omni_jax.train

A program that does not fit is reported like the rest, then named in one line, with exit
code 2. Nothing is allocated; TPU kinds need libtpu (`pip install "jax[tpu]"`), no TPU.
"""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from absl import flags
from ml_collections import config_flags

from omni_jax.chips import GIB
from omni_jax.config import read_config
from omni_jax.errors import run_command, UserError

_FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file('config', lock_config=True, flag_values=_FLAGS)
flags.DEFINE_string('topology', '', 'such as v5p:4x4x4', flag_values=_FLAGS)
flags.DEFINE_list('programs', [], 'of train, prefill, decode, draw', flag_values=_FLAGS)
flags.DEFINE_bool(
  'search', False, 'try rows a chip, remat and mesh splits', flag_values=_FLAGS
)
flags.DEFINE_integer(
  'buffers',
  0,
  'list so many of the largest temporaries',
  lower_bound=0,
  flag_values=_FLAGS,
)
flags.DEFINE_integer(
  'work', 0, 'list so many of the longest parts', lower_bound=0, flag_values=_FLAGS
)
flags.DEFINE_bool('json', False, 'print one JSON object', flag_values=_FLAGS)
flags.DEFINE_string(
  'dump', '', 'folder for what the compiler writes down', flag_values=_FLAGS
)


def _search(config: Any, topology: Any) -> None:
  from omni_jax.compile import search, summary

  def log(line: str) -> None:
    if not _FLAGS.json:
      print(line, flush=True)

  log(search.TABLE_HEAD)
  trials = search.search(config, topology, log)
  best = search.frontier(trials, topology)
  if _FLAGS.json:
    rows = [
      {
        'changes': trial.changes,
        'rows_a_chip': trial.rows,
        'refused': trial.refusal,
        'best': trial in best,
        'train': trial.measurement
        and summary.program_json(trial.measurement, topology),
      }
      for trial in trials
    ]
    _print_json(
      {'topology': topology.name, 'versions': summary.versions(), 'tried': rows}
    )
    return
  log('\nbest, by MFU if nothing overlaps; each needs less memory than those above it:')
  for trial in best:
    log(search.table_row(trial, topology))
  if not best:
    raise UserError(f'nothing that was tried fits {topology.name}')


def _measure(config: Any, topology: Any, names: Sequence[str]) -> None:
  from omni_jax.compile import measure, summary
  from omni_jax.compile.program import programs_of
  from omni_jax.model import ModelConfig

  known = tuple(programs_of(ModelConfig.from_config(config.model)))
  if unknown := sorted(set(names) - set(known)):
    raise UserError(f'--programs={",".join(unknown)}: it is some of {", ".join(known)}')
  plan = measure.make_plan(config, topology)
  measure.check_state(plan, topology)
  headline = summary.headline(plan, topology)
  if not _FLAGS.json:
    print(headline, flush=True)
  dump = pathlib.Path(_FLAGS.dump) if _FLAGS.dump else None
  measurements = {}
  for name in names or known:
    (measurement,) = measure.measure_programs(plan, topology, [name], dump)
    measurements[name] = measurement
    if not _FLAGS.json:
      lines = [
        *summary.program_lines(measurement, topology, _FLAGS.buffers),
        *summary.top_work(measurement, topology, _FLAGS.work),
        *summary.top_transfers(measurement, _FLAGS.work),
      ]
      print('\n'.join(lines), flush=True)
  if _FLAGS.json:
    programs = {
      name: summary.program_json(measurement, topology)
      for name, measurement in measurements.items()
    }
    _print_json(
      {
        'config': config.to_dict(),
        'topology': topology.name,
        'chips': topology.chips,
        'said': headline,
        'versions': summary.versions(),
        **programs,
      }
    )
  for measurement in measurements.values():
    if not measurement.fits:
      raise UserError(
        f'{measurement.name} does not fit {topology.name}: '
        f'peak {measurement.memory.peak / GIB:.2f} GiB a chip, '
        f'{topology.hbm / GIB:.2f} GiB usable; '
        f'{measure.advice(plan, topology, measurement)}'
      )


def _print_json(values: dict[str, Any]) -> None:
  print(json.dumps(values, indent=1, default=list))


def main() -> None:
  config = read_config(_FLAGS)
  if config is None or not _FLAGS.topology:
    raise UserError('give --config=configs/digits.py and --topology=v5e:4x4')
  from omni_jax.compile import topology as topologies

  topologies.pretend(_FLAGS.topology)
  topology = topologies.describe(_FLAGS.topology)
  if _FLAGS.search:
    _search(config, topology)
  else:
    _measure(config, topology, _FLAGS.programs)


if __name__ == '__main__':
  run_command(main)
