"""Compares the train step with Hugging Face transformers on PyTorch, taking turns.

python -m omni_jax.bench step --config=F [--config.name=value …] [--torch=PYTHON]

Both train the same decoder on a batch of the same size: ours on packed rows and with
its router losses, theirs (Qwen3-MoE) on full rows. Each has a process of its own. It
prints medians, and the ratio of each to ours with its 95 % bounds.

--torch=PYTHON     interpreter that has torch and transformers; without it, ours alone
--rounds=20        number of turns
--steps=2          steps in a turn
--apart            one process after the other: two do not fit into a GPU together
--checkpointing    lets transformers recompute activations, to save memory
--out=FILE.json    also writes the results to a file
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import sys
import tempfile
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from omni_jax.bench.turns import Comparison, Player, take_turns
from omni_jax.command_line import CONFIG_HELP, show_help
from omni_jax.config import read_config
from omni_jax.errors import run_command, UserError
from omni_jax.paths import checked
from omni_jax.train.plan import Plan

OURS = 'omni_jax'
THEIRS = 'transformers'

_FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
  'config', help_string=CONFIG_HELP, lock_config=True, flag_values=_FLAGS
)
flags.DEFINE_string(
  'torch', '', 'interpreter that has torch and transformers', flag_values=_FLAGS
)
flags.DEFINE_integer('rounds', 20, 'number of turns', lower_bound=1, flag_values=_FLAGS)
flags.DEFINE_integer('steps', 2, 'steps in a turn', lower_bound=1, flag_values=_FLAGS)
flags.DEFINE_bool('apart', False, 'run one process after the other', flag_values=_FLAGS)
flags.DEFINE_bool(
  'checkpointing', False, 'transformers recomputes activations', flag_values=_FLAGS
)
flags.DEFINE_string('out', '', 'JSON file for the results', flag_values=_FLAGS)


def main() -> None:
  show_help(_FLAGS, sys.argv, __doc__)
  config = read_config(_FLAGS)
  if config is None:
    raise UserError('give a config, such as --config=configs/speed.py')
  plan = Plan(config)
  arguments = config_arguments(sys.argv[1:])
  commands = {OURS: [sys.executable, '-m', 'omni_jax.bench.our_step', *arguments]}
  with tempfile.TemporaryDirectory() as folder:
    if _FLAGS.torch:
      script = pathlib.Path(__file__).with_name('hf_step.py')
      sizes = pathlib.Path(folder) / 'sizes.json'
      sizes.write_text(
        json.dumps(hf_sizes(plan) | {'checkpointing': _FLAGS.checkpointing})
      )
      # Our modules beside the script must not stand in for packages of the same names.
      alone = ['env', 'PYTHONSAFEPATH=1', _FLAGS.torch]
      commands[THEIRS] = [*alone, str(script), str(sizes)]
    results = compare(
      commands, rounds=_FLAGS.rounds, steps=_FLAGS.steps, apart=_FLAGS.apart
    )
  print('\n'.join(lines_of(results, in_turns=not _FLAGS.apart)))
  if _FLAGS.out:
    file = epath.Path(checked(_FLAGS.out, '--out'))
    file.write_text(json.dumps(results, indent=1) + '\n')


def config_arguments(arguments: Sequence[str]) -> list[str]:
  """Returns the arguments that name the config and override its keys."""
  chosen: list[str] = []
  before = ''
  for argument in arguments:
    flag = argument.partition('=')[0].lstrip('-')
    is_value = before in ('-config', '--config')
    if is_value or flag == 'config' or flag.startswith('config.'):
      chosen.append(argument)
    before = argument
  return chosen


def hf_sizes(plan: Plan) -> dict[str, Any]:
  """Returns the sizes of the decoder as `hf_step` takes them."""
  c = plan.model_config.decoder
  return {
    'vocabulary': plan.hosts.tokenizer.vocab_size,
    'width': c.width,
    'layers': c.layers,
    'heads': c.heads,
    'kv_heads': c.kv_heads,
    'head_dim': c.head_dim,
    'experts': c.experts,
    'top_k': c.top_k,
    'expert_hidden': c.expert_hidden,
    'rows': plan.budget.rows,
    'length': plan.budget.length,
  }


def compare(
  commands: Mapping[str, Sequence[str]], *, rounds: int, steps: int, apart: bool
) -> dict[str, Any]:
  """Returns what each player reported and its times, by name."""
  results: dict[str, Any] = {}
  groups = [[name] for name in commands] if apart else [list(commands)]
  for names in groups:
    players: list[Player] = []
    try:
      for name in names:
        players.append(Player(name, commands[name]))
      comparisons = take_turns(players, rounds=rounds, steps=steps)
      for player in players:
        times = comparisons[player.name]
        results[player.name] = {'ready': player.ready, 'times': times._asdict()}
    finally:
      for player in players:
        player.close()
  return results


def lines_of(results: Mapping[str, Any], *, in_turns: bool) -> list[str]:
  """Returns the results as lines of text.

  Args:
    in_turns: whether the players ran in turns, so that rounds can be compared.
  """
  ready = results[OURS]['ready']
  lines = []
  for name, result in results.items():
    times = Comparison(**result['times'])
    tokens = ready['positions'] / times.median
    line = f'{name}: {times.median:.3f} s a step, {tokens:,.0f} positions/s'
    # The table's peak of a CPU is not that of this machine.
    if name == OURS and ready['peak_flops'] and ready['device'] != 'cpu':
      mfu = ready['flops'] / times.median / ready['peak_flops'] / ready['devices']
      line += f', {mfu:.1%} MFU'
    first = results[OURS]['times']['median']
    if name != OURS:
      line += f'; {times.median / first:.2f} times ours'
      if in_turns:
        line += f', in turns {times.ratio:.2f} ({times.low:.2f} to {times.high:.2f})'
    lines.append(line)
  return lines


if __name__ == '__main__':
  run_command(main)
