"""Plans a run: reads its shapes, optimizers and mesh from the config, and checks them.

It also builds the program of the omni stage, to run or only to compile.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
import optax

from omni_jax import sharding
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.config import dataclass_of, OMNI, RunConfig, STORED, with_paths
from omni_jax.errors import UserError
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.modalities.hosts import TEXT
from omni_jax.model import abstract, main_sizes, ModelConfig
from omni_jax.objective import LossConfig, Pretraining
from omni_jax.sequence.pack import check_budget
from omni_jax.train import state as states
from omni_jax.train.mesh_checks import check_rows, check_sizes
from omni_jax.train.optim import frozen_mask, make_optimizer, OptimConfig
from omni_jax.train.step import make_step, Update


class Plan:
  """The config of a run as dataclasses, checked as far as that needs no data or folder.

  Attributes:
    config: the config of the run, as it was read.
    model_config: the shapes of the network.
    run_config: the settings of the stages, the loader and evaluation.
    mesh: the devices of the run.
    budget: sizes of a batch.
    stored_codes: whether batches hold codes that the converter stored.
    hosts: the hosts of the run's media.
    optim: settings of the optimizer, by stage.
    losses: weights of the losses of the omni stage.
  """

  def __init__(
    self,
    config: Any,
    devices: Sequence[jax.Device] | None = None,
    tables: Tables = TABLES,
  ):
    """Checks a config.

    Args:
      config: the config of the run, as it was read.
      devices: devices other than those of this process, such as those of a topology
        that is only described.
      tables: tables of the media that the run may have.

    Raises:
      UserError: if a key or a value is wrong, or sizes do not fit the mesh.
    """
    config = with_paths(config)
    self.config = config
    self.model_config = ModelConfig.from_config(config.model, tables)
    autoencoders = tuple(self.model_config.autoencoders)
    self.run_config = RunConfig.of(config, autoencoders, tables.hosts)
    self.mesh: Mesh = sharding.make_mesh(config.mesh.to_dict(), devices)
    self.budget = self.run_config.budget
    self.stored_codes = config.data.codes == STORED
    codes = self.model_config.stored_codes() if self.stored_codes else {}
    self.hosts = self.model_config.hosts(codes)
    check_budget(self.budget, self.hosts)
    self.optim: dict[str, OptimConfig] = {}
    for name in (*autoencoders, OMNI):
      part = config[name].optim
      self.optim[name] = dataclass_of(OptimConfig, part, f'{name}.optim')
    media = {TEXT: None, **self.model_config.media}
    self.losses = LossConfig.from_config(config.omni.losses, media)
    self._check_mesh()
    freeze = self.run_config.omni.freeze
    if freeze:  # raises an error for a pattern that matches nothing
      frozen_mask(sharding.param_specs(abstract(self.model_config)), freeze)

  def _check_mesh(self) -> None:
    """Checks that the mesh divides all sizes that are split over it.

    Raises:
      UserError: if it does not.
    """
    length = ('config.data.budget.length', self.budget.length, 'length')
    check_sizes(self.mesh, [*main_sizes(self.model_config), length])
    parts = self.run_config.omni.accumulate
    rows = self.budget.rows // parts
    batch_sizes = [rows]
    for stage in self.run_config.autoencoders.values():
      batch_sizes.append(stage.batch)
    for size in batch_sizes:
      check_rows(self.mesh, size)
    group = self.budget.group
    groups = self.budget.pools // parts
    shards = sharding.num_shards(self.mesh, 'batch')
    if groups % shards:
      raise UserError(
        f'config.data.budget.group={group}: {rows} rows are {groups} groups, which are '
        f'not divisible by {shards} devices; set rows={shards * group * parts} or a '
        'smaller group'
      )


class OmniProgram(NamedTuple):
  """The omni stage on its mesh. Both functions are jitted and expect `jax.set_mesh`.

  Attributes:
    init: returns a fresh state, given the values of the autoencoders.
    step: one update; it reuses the memory of the state for its result.
    state: shapes of the state.
    shardings: shardings of the state.
  """

  init: Callable[[Any], TrainState]
  step: Callable[[TrainState, Any], tuple[TrainState, Any]]
  state: TrainState
  shardings: TrainState


def omni_program(
  plan: Plan, frozen_values: Mapping[str, Any], rate: optax.Schedule | None = None
) -> OmniProgram:
  """Returns the program of the omni stage; nothing is computed.

  Args:
    frozen_values: values of the autoencoders by name, arrays or shapes.
    rate: a learning rate by step, used instead of the config's schedule.
  """
  stage = plan.run_config.omni
  config = plan.model_config
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
  shardings = states.shardings(shapes, sharding.param_specs(model), plan.mesh)
  objective = Pretraining(plan.losses, plan.mesh, stage.bias_step)
  freeze = tuple(stage.freeze)
  update = Update(stage.accumulate, stage.ema, freeze, objective.refresh)
  step = make_step(objective, model, tx, update)
  options = sharding.compiler_options(plan.mesh)
  jitted_step = jax.jit(
    step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options
  )
  return OmniProgram(
    init=jax.jit(init, out_shardings=shardings),
    step=jitted_step,
    state=shapes,
    shardings=shardings,
  )
