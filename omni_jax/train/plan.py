"""What fixes a run's programs: its shapes, optimizers and mesh; and the omni stage's program, to run or to compile."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
import optax

from omni_jax import sharding
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.config import dataclass_of, OMNI, RunConfig
from omni_jax.errors import UserError
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.modalities.hosts import TEXT
from omni_jax.model import abstract, main_sizes, ModelConfig
from omni_jax.objective import LossConfig, Pretraining
from omni_jax.sequence.pack import check_budget
from omni_jax.train import state as states
from omni_jax.train.optim import frozen, make_optimizer, OptimConfig
from omni_jax.train.step import make_step, Update


class Plan:
  """The config with its parts as dataclasses, checked as far as no data and no folder is needed.

  Attributes:
    config: of the run, as it was read.
    run_config: the same, checked.
    model_config: the shapes of the network.
    hosts: of the run's media.
    budget: sizes of a batch.
    optim: of each stage.
  """

  def __init__(
    self,
    config: Any,
    devices: Sequence[jax.Device] | None = None,
    tables: Tables = TABLES,
  ):
    """Checks a config.

    Args:
      devices: other than this process's, such as those of a described topology.
      tables: of the media that the run may have.
    """
    self.config = config
    self.model_config = ModelConfig.from_config(config.model, tables)
    autoencoders = tuple(self.model_config.autoencoders)
    self.run_config = RunConfig.of(config, autoencoders, tables.hosts)
    self.mesh: Mesh = sharding.make_mesh(config.mesh.to_dict(), devices)
    self.budget = self.run_config.budget
    self.stored_codes = config.data.codes == 'stored'
    codes = self.model_config.stored_codes() if self.stored_codes else {}
    self.hosts = self.model_config.hosts(codes)
    check_budget(self.budget, self.hosts)
    stages = (*autoencoders, OMNI)
    self.optim = {
      name: dataclass_of(OptimConfig, config[name].optim, f'{name}.optim')
      for name in stages
    }
    media = {TEXT: None, **self.model_config.media}
    self.losses = LossConfig.from_config(config.omni.losses, media)
    self._check_mesh()
    freeze = self.run_config.omni.freeze
    if freeze:  # a pattern that fits nothing is refused here
      frozen(sharding.param_specs(abstract(self.model_config)), freeze)

  def _check_mesh(self) -> None:
    """Refuses sizes that the mesh does not divide."""
    length = ('config.data.budget.length', self.budget.length, 'length')
    sharding.check_sizes(self.mesh, [*main_sizes(self.model_config), length])
    experts = self.model_config.decoder.experts
    parts, group = self.run_config.omni.accumulate, self.budget.group
    rows = [self.budget.rows // parts]
    rows += [stage.batch for stage in self.run_config.autoencoders.values()]
    for count in rows:
      sharding.check_divides(self.mesh, count, experts)
    ways = sharding.ways(self.mesh, 'batch')
    if self.budget.pools // parts % ways:
      raise UserError(
        f'config.data.budget.group={group}: {self.budget.rows // parts} rows are {self.budget.pools // parts} groups, '
        f'which do not divide by {ways} devices; take rows={ways * group * parts} or a smaller group'
      )


class OmniProgram(NamedTuple):
  """The omni stage on its mesh. Both functions are jitted and expect `jax.set_mesh`.

  Attributes:
    init: values of the autoencoders -> a fresh state.
    step: one update; it takes the state's memory for its result.
    state: shapes of the state.
    layout: its shardings.
  """

  init: Callable[[Any], TrainState]
  step: Callable[[TrainState, Any], tuple[TrainState, Any]]
  state: TrainState
  layout: TrainState


def omni_program(
  plan: Plan, frozen_values: Mapping[str, Any], rate: optax.Schedule | None = None
) -> OmniProgram:
  """Returns what the omni stage runs; nothing is computed.

  Args:
    frozen_values: of the autoencoders by name, arrays or shapes.
    rate: a learning rate by step instead of the config's schedule.
  """
  stage, config = plan.run_config.omni, plan.model_config
  model = abstract(config)
  tx = make_optimizer(
    plan.optim[OMNI],
    stage.steps,
    roles=sharding.param_roles(model),
    freeze=stage.freeze,
    rate=rate,
  )

  def init(values: Mapping[str, Any]) -> TrainState:
    return states.init_model_state(
      config, tx, values, seed=plan.config.seed, average=stage.ema > 0
    )

  shapes = jax.eval_shape(init, frozen_values)
  layout = states.shardings(shapes, sharding.param_specs(model), plan.mesh)
  objective = Pretraining(plan.losses, plan.mesh, stage.bias_step)
  freeze = tuple(stage.freeze)
  update = Update(stage.accumulate, stage.ema, freeze, objective.refresh)
  step = make_step(objective, model, tx, update)
  options = sharding.compiler_options(plan.mesh)
  jitted = jax.jit(
    step, donate_argnums=0, out_shardings=(layout, None), compiler_options=options
  )
  return OmniProgram(jax.jit(init, out_shardings=layout), jitted, shapes, layout)
