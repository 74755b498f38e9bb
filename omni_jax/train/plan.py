"""What fixes a run's programs: its shapes, optimizers and mesh; and the omni stage's program, to run or to compile."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

from flax import nnx
import jax
from jax.sharding import Mesh
import optax

from omni_jax import sharding
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.config import dataclass_of
from omni_jax.errors import UserError
from omni_jax.modalities.audio.codec import Codec
from omni_jax.modalities.audio.embed import Hearing
from omni_jax.model import abstract, main_sizes, OmniConfig
from omni_jax.train import state as states
from omni_jax.train.losses import LossConfig
from omni_jax.train.optim import frozen, make_optimizer, OptimConfig
from omni_jax.train.step import make_omni_step, Update
from omni_jax.types import MediaConfig, RowBudget

CODES = (
  'computed',
  'stored',
)  # what config.data.codes can be: in the step, or in the records


class Plan:
  """The config with its parts as dataclasses, checked as far as no data and no folder is needed."""

  def __init__(self, config: Any, devices: Sequence[jax.Device] | None = None):
    """Args:
    devices: other than this process's, such as those of a described topology.
    """
    self.config = config
    self.omni = OmniConfig.from_config(config.model)
    self.mesh: Mesh = sharding.make_mesh(config.mesh.to_dict(), devices)
    self.budget = dataclass_of(RowBudget, config.data.budget, 'data.budget')
    self.optim = {
      name: dataclass_of(OptimConfig, config[name].optim, f'{name}.optim')
      for name in ('codec', 'omni')
    }
    self.losses = dataclass_of(LossConfig, config.omni.losses, 'omni.losses')
    if (parts := config.omni.get('accumulate', 1)) < 1 or self.budget.rows % parts:
      raise UserError(
        f'config.omni.accumulate={parts}: it is 1 or more and divides config.data.budget.rows='
        f'{self.budget.rows}'
      )
    sharding.check_sizes(
      self.mesh,
      [
        *main_sizes(self.omni),
        ('config.data.budget.length', self.budget.length, 'length'),
      ],
    )
    for rows in (self.budget.rows // parts, config.codec.batch):
      sharding.check_divides(self.mesh, rows, self.omni.decoder.experts)
    if (codes := config.data.get('codes', 'computed')) not in CODES:
      raise UserError(f'config.data.codes={codes!r} is unknown; it is one of {CODES}')
    if not 0 <= config.omni.ema < 1:
      raise UserError(
        f'config.omni.ema={config.omni.ema}: a decay is at least 0 (off) and below 1'
      )
    if config.omni.freeze:  # a pattern that fits nothing is refused here
      frozen(sharding.param_specs(abstract(self.omni)), config.omni.freeze)
    self.stored_codes = codes == 'stored'

  @property
  def media(self) -> MediaConfig:
    """What the batches hold of sounds: samples, or stored codes."""
    if not self.stored_codes:
      return self.omni.media
    codec, hears = self.omni.codec, self.omni.audio_embed.hearing == Hearing.CODES
    return dataclasses.replace(
      self.omni.media,
      spoken_codes=codec.codebooks,
      entries=codec.entries,
      heard_codes=codec.codebooks if hears else 0,
    )

  def abstract_codec(self) -> Codec:
    return nnx.eval_shape(
      lambda: Codec(self.omni.codec, self.omni.media.audio, rngs=nnx.Rngs(0))
    )


class OmniProgram(NamedTuple):
  """The omni stage on its mesh. Both functions are jitted and expect `jax.set_mesh`.

  Attributes:
    init: values of the codec -> a fresh state.
    step: one update; it takes the state's memory for its result.
    state: shapes of the state.
    layout: its shardings.
  """

  init: Callable[[Any], TrainState]
  step: Callable[[TrainState, Any], tuple[TrainState, Any]]
  state: TrainState
  layout: TrainState


def omni_program(
  plan: Plan, codec_values: Any, rate: optax.Schedule | None = None
) -> OmniProgram:
  """What the omni stage runs; nothing is computed.

  Args:
    codec_values: of the codec stage, arrays or shapes.
    rate: a learning rate by step instead of the config's schedule.
  """
  part, model = plan.config.omni, abstract(plan.omni)
  roles = sharding.param_roles(model)
  tx = make_optimizer(
    plan.optim['omni'], part.steps, roles, freeze=part.freeze, rate=rate
  )

  def init(codec):
    return states.init_omni(
      plan.omni, tx, codec, seed=plan.config.seed, average=part.ema > 0
    )

  shapes = jax.eval_shape(init, codec_values)
  layout = states.shardings(shapes, sharding.param_specs(model), plan.mesh)
  update = Update(
    part.bias_step, part.get('accumulate', 1), part.ema, tuple(part.freeze)
  )
  step = make_omni_step(
    model, plan.abstract_codec(), tx, plan.losses, plan.mesh, update
  )
  return OmniProgram(
    jax.jit(init, out_shardings=layout),
    jax.jit(
      step,
      donate_argnums=0,
      out_shardings=(layout, None),
      compiler_options=sharding.compiler_options(plan.mesh),
    ),
    shapes,
    layout,
  )
