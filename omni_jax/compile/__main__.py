"""`python -m omni_jax.compile --config=configs/F.py --topology=v5p:4x4x4`: a run's programs for chips elsewhere.

  --topology=T      KIND:SIDES, such as v5e:4x4, v5p:4x4x4, 2xv5p:4x4x4 (two slices), cpu:8 (pretended CPU devices)
  --programs=A,B    of train, prefill, decode, draw (default: all)
  --search          rows a chip, remat and mesh splits: what fits, and how long a step takes
  --buffers=N       the N largest temporaries at the peak      --work=N   the N parts that take most time
  --json            one JSON object instead of text            --dump=DIR keeps what the compiler writes down
  --config.a.b=c    as in omni_jax.train

What does not fit is reported like the rest, then said in one line, with exit code 2. Nothing is allocated; TPU kinds
need libtpu (`pip install "jax[tpu]"`), no TPU.
"""

import json
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

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


def _search(config: Any, where: Any) -> None:
  from omni_jax.compile import search, summary

  say = (lambda line: None) if _FLAGS.json else lambda line: print(line, flush=True)
  say(search.HEAD)
  found = search.search(config, where, say)
  best = search.frontier(found, where)
  if _FLAGS.json:
    rows = [
      {
        'changes': one.changes,
        'rows_a_chip': one.rows,
        'refused': one.said,
        'best': one in best,
        'train': one.measured and summary.plain(one.measured, where),
      }
      for one in found
    ]
    print(
      json.dumps(
        {'topology': where.name, 'versions': summary.versions(), 'tried': rows},
        indent=1,
        default=list,
      )
    )
    return
  say('\nbest, by MFU if nothing overlaps; each needs less memory than those above it:')
  for one in best:
    say(search.line(one, where))
  if not best:
    raise UserError(f'nothing that was tried fits {where.name}')


def main() -> None:
  config = read_config(_FLAGS)
  if config is None or not _FLAGS.topology:
    raise UserError('give --config=configs/digits.py and --topology=v5e:4x4')
  from omni_jax.compile import topology

  topology.pretend(_FLAGS.topology)
  from omni_jax.compile import measure, program, summary

  where = topology.describe(_FLAGS.topology)
  if _FLAGS.search:
    return _search(config, where)
  plan = measure.make_plan(config, where)
  known = tuple(program.programs_of(plan))
  if unknown := sorted(set(_FLAGS.programs) - set(known)):
    raise UserError(f'--programs={",".join(unknown)}: it is some of {", ".join(known)}')
  measure.check_state(plan, where)
  said = summary.head(plan, where)
  if not _FLAGS.json:
    print(said, flush=True)
  found = {}
  for name in _FLAGS.programs or known:
    (one,) = measure.measure(
      plan, where, [name], pathlib.Path(_FLAGS.dump) if _FLAGS.dump else None
    )
    found[name] = one
    if not _FLAGS.json:
      print(
        '\n'.join(
          [
            *summary.describe(one, where, _FLAGS.buffers),
            *summary.top_work(one, where, _FLAGS.work),
            *summary.top_transfers(one, _FLAGS.work),
          ]
        ),
        flush=True,
      )
  if _FLAGS.json:
    json.dump(
      {
        'config': config.to_dict(),
        'topology': where.name,
        'chips': where.chips,
        'said': said,
        'versions': summary.versions(),
        **{name: summary.plain(one, where) for name, one in found.items()},
      },
      sys.stdout,
      indent=1,
      default=list,
    )
    print()
  if wrong := [one for one in found.values() if not one.fits]:
    one = wrong[0]
    raise UserError(
      f'{one.name} does not fit {where.name}: peak {one.memory.peak / 2**30:.2f} GiB a chip, '
      f'{where.hbm / 2**30:.2f} GiB usable; {measure.advice(plan, where, one)}'
    )


if __name__ == '__main__':
  run_command(main)
