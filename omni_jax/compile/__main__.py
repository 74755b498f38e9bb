"""Compiles a run's programs for chips that need not exist and reports what they take.

`python -m omni_jax.compile --config=configs/F.py --topology=v5p:4x4x4`

  --topology=T      KIND:SIDES, such as v5e:4x4, v5p:4x4x4, 2xv5p:4x4x4 (two slices) or
                    cpu:8 (simulated CPU devices)
  --programs=A,B    compiles only these of train, prefill, decode and draw
  --mesh.AXIS=N     mesh of prefill, decode and draw, such as --mesh.tensor=8; by default
                    the one that suits the model (the train step has config.mesh)
  --search          tries mesh splits, remats and rows per chip, and prints what fits and
                    how long a step takes
  --buffers=N       lists the N largest temporaries at the peak
  --work=N          lists the N parts that take the most time
  --json            prints one JSON object instead of text
  --dump=DIR        keeps the files that the compiler writes
  --config.a.b=c    overrides a value of the config, as in omni_jax.train

A program that does not fit is reported like the others; then one line names it, and the
exit code is 2. Nothing is allocated. TPU kinds need libtpu
(`pip install "jax[tpu]"`), but no TPU.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags, ConfigDict

from omni_jax.chips import GIB
from omni_jax.command_line import CONFIG_HELP, mesh_flags
from omni_jax.config import read_config
from omni_jax.errors import run_command, UserError

_FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
  'config', help_string=CONFIG_HELP, lock_config=True, flag_values=_FLAGS
)
flags.DEFINE_string(
  'topology', '', 'chips to compile for, such as v5p:4x4x4', flag_values=_FLAGS
)
flags.DEFINE_list(
  'programs',
  [],
  'programs to compile, of train, prefill, decode, draw; all by default',
  flag_values=_FLAGS,
)
flags.DEFINE_bool(
  'search', False, 'try mesh splits, remats and rows per chip', flag_values=_FLAGS
)
flags.DEFINE_integer(
  'buffers',
  0,
  'number of the largest temporaries to list',
  lower_bound=0,
  flag_values=_FLAGS,
)
flags.DEFINE_integer(
  'work',
  0,
  'number of the parts that take the most time to list',
  lower_bound=0,
  flag_values=_FLAGS,
)
flags.DEFINE_bool('json', False, 'print one JSON object', flag_values=_FLAGS)
flags.DEFINE_string(
  'dump', '', 'folder for the files that the compiler writes', flag_values=_FLAGS
)


def _search(config: ConfigDict, topology: Any) -> None:
  """Tries settings of a config and prints a table of the results.

  Raises:
    UserError: if no setting fits; not with --json.
  """
  from omni_jax.compile import search, summary

  def log(line: str) -> None:
    if not _FLAGS.json:
      print(line, flush=True)

  log(search.TABLE_HEAD)
  trials = search.search(config, topology, log)
  best = search.frontier(trials, topology)
  if _FLAGS.json:
    rows = []
    for trial in trials:
      train = None
      if trial.measurement:
        train = summary.program_json(trial.measurement, topology)
      row = {
        'changes': trial.changes,
        'rows_a_chip': trial.rows,
        'refused': trial.refusal,
        'best': trial in best,
        'train': train,
      }
      rows.append(row)
    versions = summary.versions()
    _print_json({'topology': topology.name, 'versions': versions, 'tried': rows})
    return
  log('\nbest, by MFU if nothing overlaps; each needs less memory than those above it:')
  for trial in best:
    log(search.table_row(trial, topology))
  if not best:
    raise UserError(f'none of the settings that were tried fits {topology.name}')


def _measure(
  config: ConfigDict,
  topology: Any,
  names: Sequence[str],
  mesh_sizes: Mapping[str, int] | None,
) -> None:
  """Compiles programs of a config and prints their measurements.

  Raises:
    UserError: if a name is unknown, or if the state or a program does not fit.
  """
  from omni_jax.checkpoint.placement import generation_mesh
  from omni_jax.compile import measure, summary
  from omni_jax.compile.program import program_names
  from omni_jax.model import ModelConfig

  known = program_names(ModelConfig.from_config(config.model))
  if unknown := sorted(set(names) - set(known)):
    raise UserError(
      f'--programs={",".join(unknown)} is unknown; the programs are {", ".join(known)}'
    )
  plan = measure.make_plan(config, topology)
  measure.check_state(plan, topology)
  mesh = generation_mesh(plan.model_config, mesh_sizes, topology.devices)
  headline = summary.headline(plan, topology)
  if not _FLAGS.json:
    print(headline, flush=True)
  dump = pathlib.Path(_FLAGS.dump) if _FLAGS.dump else None
  measurements = {}
  for name in names or known:
    (measurement,) = measure.measure_programs(plan, topology, [name], mesh, dump)
    measurements[name] = measurement
    if not _FLAGS.json:
      lines = [
        *summary.program_lines(measurement, topology, _FLAGS.buffers),
        *summary.top_work(measurement, topology, _FLAGS.work),
        *summary.top_transfers(measurement, _FLAGS.work),
      ]
      print('\n'.join(lines), flush=True)
  if _FLAGS.json:
    values = {
      'config': config.to_dict(),
      'topology': topology.name,
      'chips': topology.chips,
      'headline': headline,
      'versions': summary.versions(),
    }
    for name, measurement in measurements.items():
      values[name] = summary.program_json(measurement, topology)
    _print_json(values)
  for measurement in measurements.values():
    if not measurement.fits:
      raise UserError(
        f'{measurement.name} does not fit {topology.name}: '
        f'peak {measurement.memory.peak / GIB:.2f} GiB a chip, '
        f'{topology.hbm / GIB:.2f} GiB usable; '
        f'{measure.advice(plan, topology, measurement)}'
      )


def _print_json(values: dict[str, Any]) -> None:
  """Prints values as one JSON object."""
  print(json.dumps(values, indent=1, default=list))


def main() -> None:
  """Runs the command.

  Raises:
    UserError: for a wrong flag or config, or for what does not fit the topology.
  """
  arguments = mesh_flags(sys.argv)
  config = read_config(_FLAGS, arguments.others)
  if config is None or not _FLAGS.topology:
    raise UserError('give --config=configs/digits.py and --topology=v5e:4x4')
  from omni_jax.compile import topology as topologies

  topologies.pretend(_FLAGS.topology)
  topology = topologies.describe(_FLAGS.topology)
  if _FLAGS.search:
    _search(config, topology)
  else:
    _measure(config, topology, _FLAGS.programs, arguments.sizes)


if __name__ == '__main__':
  run_command(main)
