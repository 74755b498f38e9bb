"""Plays in `bench.turns`: runs the train step of a config on one synthetic batch.

python -m omni_jax.bench.our_step --config=F [--config.name=value …]
"""

import functools
import sys
import time
from typing import Any

from absl import flags
import jax
from ml_collections import config_flags

from omni_jax.bench.synthetic import synthetic_batch
from omni_jax.bench.turns import serve
from omni_jax.checkpoint.init_values import init_frozen
from omni_jax.chips import peak_flops
from omni_jax.command_line import CONFIG_HELP, show_help
from omni_jax.config import read_config
from omni_jax.errors import run_command, UserError
from omni_jax.objective import TOKENS
from omni_jax.sharding import place, replicated
from omni_jax.train.flops import step_flops
from omni_jax.train.numerics import TOTAL_LOSS
from omni_jax.train.plan import omni_program, Plan
from omni_jax.train.start import start_jax

_FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
  'config', help_string=CONFIG_HELP, lock_config=True, flag_values=_FLAGS
)


def main() -> None:
  show_help(_FLAGS, sys.argv)
  config = read_config(_FLAGS)
  if config is None:
    raise UserError('give a config, such as --config=configs/speed.py')
  start_jax(config)
  play(Plan(config))


def play(plan: Plan) -> None:
  """Compiles the step, runs it twice, and then whenever it is asked to."""
  start = time.perf_counter()
  with jax.set_mesh(plan.mesh):
    batch = place(synthetic_batch(plan), plan.mesh)
    init = functools.partial(init_frozen, plan.model_config, seed=0)
    frozen = jax.jit(init, out_shardings=replicated(plan.mesh))()
    program = omni_program(plan, frozen)
    state = program.init(frozen)
    traced = time.perf_counter()
    step: Any = program.step
    compiled = step.lower(state, batch).compile()
    compile_s = time.perf_counter() - traced
    losses: list[Any] = []

    def run(steps: int) -> None:
      nonlocal state
      metrics: Any = None
      for _ in range(steps):
        earlier = metrics
        state, metrics = compiled(state, batch)
        jax.block_until_ready(earlier)  # the host is one step ahead, as in training
      losses.append(jax.block_until_ready(metrics))

    run(2)
    memory = compiled.memory_analysis()
    flops = step_flops(plan.model_config, plan.budget).model
    device = jax.devices()[0]
    ready = {
      'start_s': time.perf_counter() - start,
      'compile_s': compile_s,
      'device': device.device_kind,
      'devices': plan.mesh.size,
      'jax': jax.__version__,
      'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
      'positions': plan.budget.rows * plan.budget.length,
      'tokens': float(losses[-1][TOKENS]),
      'loss': float(losses[-1][TOTAL_LOSS]),
      'flops': flops,
      'peak_flops': peak_flops(device.device_kind),
      'temporary_gib': memory.temp_size_in_bytes / 2**30,
      'state_gib': memory.argument_size_in_bytes / 2**30,
    }
    serve(ready, run)


if __name__ == '__main__':
  run_command(main)
