"""Compiles the pod configs and writes docs/pods.md.

  python launch/pods.py [--only=NAME …] [--programs=A,B] [--page]

The table RUNS below lists what is compiled. The measurements are stored in
docs/pods.json, from which the page is written. --only repeats one run and keeps the
others, --programs repeats some programs of a run and keeps the others, and --page only
writes the page. A run takes some minutes on two cores and needs libtpu.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

from omni_jax.chips import GIB

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS_FILE = ROOT / 'docs' / 'pods.json'
PAGE_FILE = ROOT / 'docs' / 'pods.md'
ALL = 'train,prefill,decode,draw'


class Run(NamedTuple):
  """A run whose programs are compiled.

  Attributes:
    section: section of the page that shows it.
    config: file of configs/, perhaps with a variant after a colon.
    topology: chips to compile for.
    programs: names of the programs, separated by commas.
    overrides: changed values of the config by their keys.
  """

  section: str
  config: str
  topology: str
  programs: str
  overrides: dict[str, int | str]


RUNS = {
  'omni_1b v5e-16': Run('fits', 'omni_1b', 'v5e:4x4', ALL, {}),
  'omni_8x7b v5p-128': Run('fits', 'omni_8x7b', 'v5p:4x4x4', ALL, {}),
  'omni_30b_a3b v5p-64': Run('fits', 'omni_30b_a3b', 'v5p:4x4x2', ALL, {}),
  'omni_30b_a3b v6e-64': Run(
    'fits', 'omni_30b_a3b', 'v6e:8x8', ALL, {'data.budget.rows': 64}
  ),
  'omni_1b 16': Run(
    'scaling', 'omni_1b.py:text', 'v5e:4x4', 'train', {'data.budget.rows': 16}
  ),
  'omni_1b 64': Run(
    'scaling', 'omni_1b.py:text', 'v5e:8x8', 'train', {'data.budget.rows': 64}
  ),
  'omni_1b 256': Run(
    'scaling', 'omni_1b.py:text', 'v5e:16x16', 'train', {'data.budget.rows': 256}
  ),
  'omni_1b 512': Run(
    'scaling',
    'omni_1b.py:text',
    '2xv5e:16x16',
    'train',
    {'data.budget.rows': 512, 'codec.batch': 512, 'mesh.data': 2},
  ),
  'mixtral 8x7b': Run(
    'peers', 'omni_8x7b.py:text', 'v5p:4x4x4', 'train', {'data.budget.rows': 256}
  ),
  'qwen3 30b-a3b v5p': Run(
    'peers', 'omni_30b_a3b.py:text', 'v5p:4x4x4', 'train', {'data.budget.rows': 256}
  ),
  'qwen3 30b-a3b v6e': Run(
    'peers',
    'omni_30b_a3b.py:text',
    'v6e:4x4',
    'train',
    {'data.budget.rows': 16, 'mesh.expert': 1, 'model.weights': 'bfloat16'},
  ),
  'qwen3 30b-a3b v5e': Run(
    'peers',
    'omni_30b_a3b.py:text',
    'v5e:4x4',
    'train',
    {
      'data.budget.rows': 16,
      'data.budget.length': 2048,
      'mesh.expert': 1,
      'model.weights': 'bfloat16',
    },
  ),
}
# (peak GiB per chip, compile seconds) of MaxText with text alone, bf16 compute, full
# remat and AdamW, by the same jax and libtpu. None: it does not fit.
PEERS = {
  'mixtral 8x7b': (23.5, 82),
  'qwen3 30b-a3b v5p': (19.9, 165),
  'qwen3 30b-a3b v6e': (20.4, 120),
  'qwen3 30b-a3b v5e': (None, None),
}
INTRODUCTION = """# Pods

What the pod configs take, by ahead-of-time compilation: libtpu compiles the real train
step and the programs of generation for topologies that are only described. No figure
here was measured on a TPU. `python launch/pods.py` writes this page.

- **Peak** is what the compiler's buffer assignment needs on one chip: arguments,
  results, temporaries and the program.
- **FLOPs** are those of the compiled program on one chip, with every loop counted as
  often as it runs; *analytic* is the count from the config (`train/flops.py`) with the
  recomputation of the remat. The program has fewer: splash skips what lies above the
  diagonal, and no gradient needs the last product of an expert. An all-to-all counts
  its whole room (`decoder.capacity` times what is sent on average), in FLOPs and bytes.
- **Collectives** are the bytes that one chip sends in a step, by the ring algorithm,
  along the named mesh axes.
- **Step** is a roofline with the chip's figures in `omni_jax/chips.py`, three times: if
  collectives hide behind the core's work; as the compiler scheduled them, where only
  what starts early and is awaited late hides; and if nothing overlaps. **MFU** counts
  the model's FLOPs alone, in the same order.
- **Compiled** is wall time on two cores.
"""


def compile_run(name: str, programs: str) -> dict:
  """Compiles programs of a run, and returns the results that the command prints.

  A program that does not fit is a result, too.

  Args:
    name: name of the run in RUNS.
    programs: names of the programs, separated by commas.

  Raises:
    SystemExit: if the command prints no result, with its error message.
  """
  run = RUNS[name]
  file = run.config if '.py' in run.config else f'{run.config}.py'
  overrides = [f'--config.{key}={value}' for key, value in run.overrides.items()]
  command = [
    sys.executable,
    '-m',
    'omni_jax.compile',
    f'--config=configs/{file}',
    f'--topology={run.topology}',
    '--json',
    f'--programs={programs}',
    *overrides,
  ]
  completed = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=False
  )
  if not completed.stdout.strip():
    raise SystemExit(f'{name}: {completed.stderr.strip().splitlines()[-1]}')
  results = json.loads(completed.stdout)
  for program in programs.split(','):
    results[program]['largest'] = results[program]['largest'][:8]
    results[program]['commit'] = current_commit()
  budget = results.pop('config')['data']['budget']
  results['rows'] = budget['rows']
  results['length'] = budget['length']
  results['command'] = ' '.join(command[1:])
  return results


def current_commit() -> str:
  """Returns the short hash of the commit that is checked out."""
  git = ['git', 'rev-parse', '--short', 'HEAD']
  completed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
  return completed.stdout.strip()


def gib(size: float) -> str:
  """Returns a number of bytes in GiB, without the unit."""
  return f'{size / GIB:.2f}'


def large_collectives(collectives: list[dict]) -> str:
  """Returns 'all-gather fsdp 12.0, …' for the collectives that move 0.1 GB or more."""
  texts = []
  for collective in collectives:
    if collective['moved'] >= 1e8:
      gigabytes = f'{collective["moved"] / 1e9:.1f}'
      texts.append(f'{collective["kind"]} {collective["axes"]} {gigabytes}')
  return ', '.join(texts) or '–'


def three_ways(values: dict[str, float], form: str) -> str:
  """Returns three values as text: collectives hidden, as scheduled, and not hidden."""
  keys = ('overlapped', 'scheduled', 'serial')
  return ' / '.join(form.format(values[key]) for key in keys)


def train_row(name: str, run: dict) -> str:
  """Returns the row of a train step in the table that HEAD begins."""
  train = run['train']
  flops = train['flops']
  fits = '' if train['fits'] else ' **no**'
  mfu = {key: 100 * value for key, value in train['mfu'].items()}
  cells = (
    name,
    run['topology'],
    f'{run["rows"] / run["chips"]:g} x {run["length"]}',
    f'{gib(train["memory"]["peak"])} of {gib(train["hbm"])}{fits}',
    f'{flops["program"] / 1e12:.0f}',
    f'{flops["program"] / flops["with_remat"]:.3f}',
    f'{train["hbm_bytes"] / 1e12:.2f}',
    large_collectives(train['collectives']),
    three_ways(train['seconds'], '{:.2f}'),
    three_ways(mfu, '{:.0f}'),
    train['bound'],
    f'{train["compile_seconds"]:.0f}',
  )
  return row(*cells)


SCALING = """\
The same rows per chip on more chips, with text alone. The FLOPs of a chip are exactly
the same, and so is its part of the activations. Its part of the state shrinks with the
number of chips. In theory a chip moves (n - 1)/n of the weights in bf16 for the forward
pass, again for the recomputed one, and as much for the gradients: 7 to 8 GB. The
differences are:

- On 16 chips XLA passes the weights of dense products around a ring inside the product
  (collective-permute). From 64 chips on it gathers them.
- Gradients are reduced as a whole (all-reduce) where a reduce-scatter would be enough.
  This moves twice the bytes, most of all where fsdp is the whole slice (64 and 256
  chips; decision 37).
- With two slices, fsdp stays inside a slice and data goes across them: the state is
  that of 256 chips, not of 512, and each chip's part of the gradients crosses the data
  center network once."""
HEAD = (
  '| run | topology | rows a chip | peak GiB | TFLOP | of analytic | HBM TB '
  '| collectives, GB | step s | MFU % | bound | compiled s |\n'
  '|---|---|---|---|---|---|---|---|---|---|---|---|'
)


def commits(results: dict[str, dict]) -> str:
  """Returns which train steps were measured at which commit."""
  by_commit: dict[str, list[str]] = {}
  for name in RUNS:
    if name in results:
      commit = results[name]['train'].get('commit', results[name].get('commit'))
      by_commit.setdefault(commit, []).append(name)
  texts = [f'{", ".join(names)} at {commit}' for commit, names in by_commit.items()]
  return '; '.join(texts)


def row(*cells: object) -> str:
  """Returns a line of a table."""
  return f'| {" | ".join(map(str, cells))} |'


def table_head(*titles: str) -> list[str]:
  """Returns the first lines of a table and the empty line before it."""
  return ['', row(*titles), '|' + '---|' * len(titles)]


def floor_of(program: str, results: dict) -> str:
  """Returns the milliseconds in which an id could be written; '–' if not measured."""
  if program != 'decode' or 'floor' not in results:
    return '–'
  return f'{1e3 * results["floor"]:.1f}'


def generation_table(runs: list[tuple[str, dict]]) -> list[str]:
  """Returns the lines of the table of the programs of generation."""
  lines = table_head(
    'run',
    'program',
    'mesh',
    'peak GiB',
    'fits',
    'TFLOP',
    'HBM GB',
    'at least ms',
    'scheduled ms',
    'floor ms',
    'bound',
    'commit',
  )
  for name, run in runs:
    for program in ('prefill', 'decode', 'draw'):
      if program not in run:
        continue
      results = run[program]
      cells = (
        name,
        program,
        results.get('mesh', 'that of training'),
        gib(results['memory']['peak']),
        'yes' if results['fits'] else '**no**',
        f'{results["flops"]["program"] / 1e12:.3g}',
        f'{results["hbm_bytes"] / 1e9:.3g}',
        f'{1e3 * results["seconds"]["overlapped"]:.1f}',
        f'{1e3 * results["seconds"]["scheduled"]:.1f}',
        floor_of(program, results),
        results['bound'],
        results.get('commit', run.get('commit')),
      )
      lines.append(row(*cells))
  return lines


def peers_table(runs: list[tuple[str, dict]]) -> list[str]:
  """Returns the lines of the table that compares with MaxText."""
  lines = table_head('run', 'MaxText peak GiB', 'ours', 'MaxText compiled s', 'ours')
  for name, run in runs:
    peak, seconds = PEERS[name]
    train = run['train']
    our_peak = gib(train['memory']['peak'])
    if not train['fits']:
      our_peak += ' **does not fit**'
    cells = (
      f'{name}, {run["topology"]}',
      peak or 'does not fit',
      our_peak,
      seconds or '–',
      f'{train["compile_seconds"]:.0f}',
    )
    lines.append(row(*cells))
  return lines


def memory_table(runs: list[tuple[str, dict]]) -> list[str]:
  """Returns the lines of the table of the train step's memory, by kind."""
  kinds = ('parameters', 'optimizer', 'buffers', 'batch', 'temporaries', 'program')
  lines = table_head('run', *kinds)
  for name, run in runs:
    memory = run['train']['memory']
    sizes = [gib(memory[kind]) for kind in kinds]
    lines.append(row(name, *sizes))
  return lines


def versions(results: dict[str, dict]) -> str:
  """Returns the versions of jax and libtpu that the runs used."""
  texts = set()
  for run in results.values():
    tools = [f'{name} {version}' for name, version in run['versions'].items()]
    texts.add(', '.join(tools))
  return '; '.join(sorted(texts))


def runs_of(section: str, results: dict[str, dict]) -> list[tuple[str, dict]]:
  """Returns the name and the results of each measured run of a section."""
  runs = []
  for name, run in RUNS.items():
    if run.section == section and name in results:
      runs.append((name, results[name]))
  return runs


def train_table(runs: list[tuple[str, dict]]) -> list[str]:
  """Returns the lines of the table of train steps and the empty line before it."""
  return ['', HEAD, *(train_row(name, run) for name, run in runs)]


def page(results: dict[str, dict]) -> str:
  """Returns the text of docs/pods.md."""
  fits = runs_of('fits', results)
  scaling = runs_of('scaling', results)
  peers = runs_of('peers', results)
  lines = [
    INTRODUCTION,
    f'Versions: {versions(results)}. Measured: {commits(results)}.',
    '',
    '## All modalities and heads',
    *train_table(fits),
    '',
    'Memory of the train step by kind, GiB per chip:',
    *memory_table(fits),
    '',
    'The programs of generation, with as many replies as the batch has rows. For '
    '`decode` one iteration counts, which is one id of each reply. The cache has room for '
    'a prompt as long as a row, the ids and one image. The mesh is the one that suits the '
    'model (`sharding.generation_sizes`). The floor is the time to read every weight and '
    'the cache once, plus 5 us for each collective, which `at least` counts by its bytes '
    'alone:',
    *generation_table(fits),
    '',
    '## Weak scaling',
    '',
    SCALING,
    *train_table(scaling),
    '',
    '## Comparison with MaxText',
    '',
    'Text alone, bf16 compute, full remat, AdamW. The figures of MaxText were measured '
    'with the same jax and libtpu.',
    *peers_table(peers),
    *train_table(peers),
    '',
  ]
  return '\n'.join(lines)


def main() -> None:
  """Compiles the runs that are requested and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--only',
    action='append',
    choices=RUNS,
    help='repeat only this run; may be given several times',
  )
  parser.add_argument(
    '--programs', help='repeat only these programs, separated by commas'
  )
  parser.add_argument('--page', action='store_true', help='only write the page')
  arguments = parser.parse_args()
  results = json.loads(RESULTS_FILE.read_text()) if RESULTS_FILE.exists() else {}
  names = arguments.only or list(RUNS)
  if arguments.page:
    names = []
  for name in names:
    programs = arguments.programs or RUNS[name].programs
    results.setdefault(name, {}).update(compile_run(name, programs))
    train = results[name]['train']
    fits = 'fits' if train['fits'] else 'does not fit'
    print(f'{name}: peak {gib(train["memory"]["peak"])} GiB, {fits}', flush=True)
    RESULTS_FILE.write_text(json.dumps(results, indent=1) + '\n')
  PAGE_FILE.write_text(page(results))


if __name__ == '__main__':
  main()
