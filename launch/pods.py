"""Compiles the pod configs and writes docs/pods.md.

  python launch/pods.py [--only=NAME …] [--page]

What is compiled is the table RUNS below. The facts go to docs/pods.json, the page is
made of them; --only does a run anew and leaves the others, --page makes the page alone.
Two cores need some minutes a run; libtpu is needed.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
FACTS, PAGE = ROOT / 'docs' / 'pods.json', ROOT / 'docs' / 'pods.md'
ALL = 'train,prefill,decode,draw'

# name: (section, config, topology, programs, overrides)
RUNS = {
  'omni_1b v5e-16': ('fits', 'omni_1b', 'v5e:4x4', ALL, {}),
  'omni_8x7b v5p-128': ('fits', 'omni_8x7b', 'v5p:4x4x4', ALL, {}),
  'omni_30b_a3b v5p-64': ('fits', 'omni_30b_a3b', 'v5p:4x4x2', ALL, {}),
  'omni_30b_a3b v6e-64': (
    'fits',
    'omni_30b_a3b',
    'v6e:8x8',
    ALL,
    {'data.budget.rows': 64},
  ),
  'omni_1b 16': (
    'scaling',
    'omni_1b.py:text',
    'v5e:4x4',
    'train',
    {'data.budget.rows': 16},
  ),
  'omni_1b 64': (
    'scaling',
    'omni_1b.py:text',
    'v5e:8x8',
    'train',
    {'data.budget.rows': 64},
  ),
  'omni_1b 256': (
    'scaling',
    'omni_1b.py:text',
    'v5e:16x16',
    'train',
    {'data.budget.rows': 256},
  ),
  'omni_1b 512': (
    'scaling',
    'omni_1b.py:text',
    '2xv5e:16x16',
    'train',
    {'data.budget.rows': 512, 'codec.batch': 512, 'mesh.data': 2},
  ),
  'mixtral 8x7b': (
    'peers',
    'omni_8x7b.py:text',
    'v5p:4x4x4',
    'train',
    {'data.budget.rows': 256},
  ),
  'qwen3 30b-a3b v5p': (
    'peers',
    'omni_30b_a3b.py:text',
    'v5p:4x4x4',
    'train',
    {'data.budget.rows': 256},
  ),
  'qwen3 30b-a3b v6e': (
    'peers',
    'omni_30b_a3b.py:text',
    'v6e:4x4',
    'train',
    {'data.budget.rows': 16, 'mesh.expert': 1, 'model.weights': 'bfloat16'},
  ),
  'qwen3 30b-a3b v5e': (
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
# MaxText, text alone, bf16 compute, full remat, AdamW, same jax and libtpu: (peak GiB a chip, compile seconds).
PEERS = {
  'mixtral 8x7b': (23.5, 82),
  'qwen3 30b-a3b v5p': (19.9, 165),
  'qwen3 30b-a3b v6e': (20.4, 120),
  'qwen3 30b-a3b v5e': (None, None),
}
ABOUT = """# Pods

What the pod configs take, by ahead-of-time compilation: the true train step and the programs of generation, compiled by
libtpu for topologies that are only described. No figure here was measured on a TPU. Made by `python launch/pods.py`.

- **Peak** is what the compiler's buffer assignment needs on one chip: arguments, results, temporaries, the program.
- **FLOPs** are those of the compiled program with every loop counted as often as it turns, on one chip; *analytic* is
  the count from the config (`train/flops.py`) with the remat's recomputation. The program has fewer: splash leaves out
  what lies above the diagonal, and no gradient needs the last product of an expert. An all-to-all counts its whole
  room (`decoder.capacity` times what is sent on average), in FLOPs and in bytes.
- **Collectives** are bytes that one chip sends in a step, by the ring algorithm, along the named mesh axes.
- **Step** is a roofline with the chip's figures in `omni_jax/chips.py`, three times: if collectives hide behind the
  core's work; as the compiler ordered them, where only what is begun early and awaited late hides; and if nothing
  overlaps. **MFU** counts the model's FLOPs alone, in the same order.
- **Compiled** is wall time on two cores. Those of omni_1b v5e-16 and mixtral 8x7b say nothing now: other work ran
  beside both, and the first was paused; before, they were 108 s and 37 s.
"""


def compile_run(name: str) -> dict:
  """Runs the command and returns its facts; what does not fit is a result, too."""
  _, config, topology, programs, overrides = RUNS[name]
  file = config if '.py' in config else f'{config}.py'
  command = [
    sys.executable,
    '-m',
    'omni_jax.compile',
    f'--config=configs/{file}',
    f'--topology={topology}',
    '--json',
    f'--programs={programs}',
    *(f'--config.{key}={value}' for key, value in overrides.items()),
  ]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  if not done.stdout.strip():
    raise SystemExit(f'{name}: {done.stderr.strip().splitlines()[-1]}')
  run = json.loads(done.stdout)
  for program in programs.split(','):
    run[program]['largest'] = run[program]['largest'][:8]
  budget = run.pop('config')['data']['budget']
  git = ['git', 'rev-parse', '--short', 'HEAD']
  commit = subprocess.run(
    git, cwd=ROOT, capture_output=True, text=True, check=False
  ).stdout.strip()
  return {
    **run,
    'commit': commit,
    'rows': budget['rows'],
    'length': budget['length'],
    'command': ' '.join(command[1:]),
  }


def gib(size: float) -> str:
  return f'{size / 2**30:.2f}'


def large_collectives(collectives: list[dict]) -> str:
  """Returns 'all-gather fsdp 12.0, …' of the collectives that move 0.1 GB or more."""
  texts = [
    f'{one["kind"]} {one["axes"]} {one["moved"] / 1e9:.1f}'
    for one in collectives
    if one['moved'] >= 1e8
  ]
  return ', '.join(texts) or '–'


def three_ways(values: dict, form: str) -> str:
  """Returns the values hidden, as scheduled and one after the other."""
  keys = ('overlapped', 'scheduled', 'serial')
  return ' / '.join(form.format(values[key]) for key in keys)


def train_row(name: str, run: dict) -> str:
  """Returns the row of a train step, below HEAD."""
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


SCALING = """The same rows a chip on more chips, text alone. FLOPs of a chip are the same to the last one, as is its
part of the activations; its part of the state shrinks with the chips. By theory a chip moves (n - 1)/n of the weights
in bf16 for the forward pass, again for the recomputed one, and as much for the gradients: 7 to 8 GB. Departures:

- On 16 chips XLA passes weights of dense products around a ring inside the product (collective-permute); from 64 on it
  gathers them.
- Gradients are reduced whole (all-reduce) where a reduce-scatter would do, which moves twice the bytes, most of all
  where fsdp is the whole slice (64 and 256 chips; decision 37).
- Of two slices, fsdp stays inside and data goes across: the state is that of 256 chips, not of 512, and each chip's
  part of the gradients crosses the data center network once."""
HEAD = (
  '| run | topology | rows a chip | peak GiB | TFLOP | of analytic | HBM TB | collectives, GB | step s | MFU % | '
  'bound | compiled s |\n|---|---|---|---|---|---|---|---|---|---|---|---|'
)


def commits(facts: dict) -> str:
  """Returns what was measured at which commit."""
  by_commit = {}
  for name in (name for name in RUNS if name in facts):
    by_commit.setdefault(facts[name]['commit'], []).append(name)
  return '; '.join(
    f'{", ".join(names)} at {commit}' for commit, names in by_commit.items()
  )


def row(*cells: object) -> str:
  """Returns a line of a table."""
  return f'| {" | ".join(map(str, cells))} |'


def table_head(*titles: str) -> list[str]:
  """Returns the first lines of a table, the empty one before it included."""
  return ['', row(*titles), '|' + '---|' * len(titles)]


def generation_table(runs: list[tuple[str, dict]]) -> list[str]:
  """Returns the lines on the programs of generation."""
  lines = table_head(
    'run', 'program', 'peak GiB', 'fits', 'TFLOP', 'HBM GB', 'at least ms', 'bound'
  )
  for name, run in runs:
    for program in ('prefill', 'decode', 'draw'):
      if program not in run:
        continue
      facts = run[program]
      cells = (
        name,
        program,
        gib(facts['memory']['peak']),
        'yes' if facts['fits'] else '**no**',
        f'{facts["flops"]["program"] / 1e12:.3g}',
        f'{facts["hbm_bytes"] / 1e9:.3g}',
        f'{1e3 * facts["seconds"]["overlapped"]:.1f}',
        facts['bound'],
      )
      lines.append(row(*cells))
  return lines


def peers_table(runs: list[tuple[str, dict]]) -> list[str]:
  """Returns the lines that compare with MaxText."""
  lines = table_head('run', 'MaxText peak GiB', 'ours', 'MaxText compiled s', 'ours')
  for name, run in runs:
    peak, seconds = PEERS[name]
    train = run['train']
    cells = (
      f'{name}, {run["topology"]}',
      peak or 'does not fit',
      gib(train['memory']['peak']) + ('' if train['fits'] else ' **does not fit**'),
      seconds or '–',
      f'{train["compile_seconds"]:.0f}',
    )
    lines.append(row(*cells))
  return lines


def memory_table(runs: list[tuple[str, dict]]) -> list[str]:
  """Returns the lines on the memory of the train step, by kind."""
  kinds = ('parameters', 'optimizer', 'buffers', 'batch', 'temporaries', 'program')
  lines = table_head('run', *kinds)
  for name, run in runs:
    memory = run['train']['memory']
    lines.append(row(name, *(gib(memory[kind]) for kind in kinds)))
  return lines


def versions(facts: dict) -> str:
  """Returns the versions of jax and libtpu that were used."""
  texts = {
    ', '.join(f'{name} {version}' for name, version in run['versions'].items())
    for run in facts.values()
  }
  return '; '.join(sorted(texts))


def page(facts: dict) -> str:
  """Returns the text of docs/pods.md."""

  def section(name: str) -> list[tuple[str, dict]]:
    return [(run, facts[run]) for run in RUNS if RUNS[run][0] == name and run in facts]

  lines = [
    ABOUT,
    f'Versions: {versions(facts)}. Measured: {commits(facts)}.',
    '',
    '## All modalities and heads',
    '',
    HEAD,
    *(train_row(*run) for run in section('fits')),
    '',
    'Memory of the train step by kind, GiB a chip:',
    *memory_table(section('fits')),
    '',
    'The programs of generation, as many replies as the batch has rows; of `decode` '
    'one turn counts, an id in each:',
    *generation_table(section('fits')),
    '',
    '## Weak scaling',
    '',
    SCALING,
    '',
    HEAD,
    *(train_row(*run) for run in section('scaling')),
    '',
    '## Against MaxText',
    '',
    'Text alone, bf16 compute, full remat, AdamW; its figures were measured with '
    'the same jax and libtpu.',
    *peers_table(section('peers')),
    '',
    HEAD,
    *(train_row(*run) for run in section('peers')),
    '',
  ]
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--only',
    action='append',
    choices=RUNS,
    help='do this run anew; may be given several times',
  )
  parser.add_argument('--page', action='store_true', help='only make the page')
  arguments = parser.parse_args()
  facts = json.loads(FACTS.read_text()) if FACTS.exists() else {}
  for name in () if arguments.page else arguments.only or RUNS:
    facts[name] = compile_run(name)
    train = facts[name]['train']
    fits = 'fits' if train['fits'] else 'does not fit'
    print(f'{name}: peak {gib(train["memory"]["peak"])} GiB, {fits}', flush=True)
    FACTS.write_text(json.dumps(facts, indent=1) + '\n')
  PAGE.write_text(page(facts))


if __name__ == '__main__':
  main()
