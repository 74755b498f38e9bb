"""Small models, examples and batches that many tests share."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from omni_jax.checkpoint.init_values import init_autoencoder
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.config import config_file
from omni_jax.data.making import prepare
from omni_jax.modalities.audio.quantizer import init_buffers
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.contract import Part
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.model import abstract, batch_losses, ModelConfig, OmniModel
from omni_jax.objective import LossConfig, Pretraining
from omni_jax.sequence.pack import Laid, Packer
from omni_jax.sharding import make_mesh, param_roles, param_specs, place
from omni_jax.train import state as states
from omni_jax.train.optim import make_optimizer, OptimConfig
from omni_jax.train.step import make_step, Update
from omni_jax.types import Batch, RowBudget

ROOT = pathlib.Path(__file__).parents[1]
STREAMS = {
  'image.seen': (32, 2),
  'image.drawn': (32, 2),
  'audio.heard': (8, 4),
  'audio.spoken': (8, 4),
}
BUDGET = RowBudget(rows=2, length=96, streams=STREAMS)
IMAGES, SOUNDS, TOKENS = ImageConfig(), AudioConfig(), TokenizerConfig()


def mostly_long(cases: Sequence[Any], *always: int) -> list[Any]:
  """Cases of a parametrised test; all but those with these numbers run only with --long."""
  return [
    case
    if i in always
    else pytest.param(
      *case if isinstance(case, tuple) else (case,), marks=pytest.mark.long
    )
    for i, case in enumerate(cases)
  ]


def tiny_run() -> ConfigDict:
  """The run of configs/tiny.py."""
  return config('tiny')


def config(name: str) -> ConfigDict:
  """The run of a file of configs/."""
  return config_file(str(ROOT / 'configs' / 'base.py'), name)['get_config']()


def data_config(**values: Any) -> ConfigDict:
  """`config.data` with the values of configs/base.py, but for these."""
  data = config('base').data.to_dict() | values
  return ConfigDict(data)


def hosts_of(
  *,
  image: ImageConfig = IMAGES,
  audio: AudioConfig = SOUNDS,
  tokenizer: TokenizerConfig = TOKENS,
) -> Hosts:
  """Hosts of images and sounds without a model."""
  return Hosts({'image': image, 'audio': audio}, Tokenizer(tokenizer))


def tiny_model(**decoder: Any) -> ModelConfig:
  """The network of configs/tiny.py on clips of half a second; half of the drawings are made without their condition."""
  model = tiny_run().model
  model.audio.seconds = 0.48
  model.image.head.null = 0.5
  model.decoder.update(decoder)
  return ModelConfig.from_config(model)


def picture(
  rng: np.random.Generator, height: int = 8, width: int = 8
) -> dict[str, Any]:
  return {'type': 'image', 'pixels': rng.random((height, width, 1), np.float32)}


def sound(rng: np.random.Generator, frames: int = 3) -> dict[str, Any]:
  """A tone with a little noise; its last frame is half full."""
  time = np.arange(round((frames - 0.5) * 640)) / 8000
  wave = 0.3 * np.sin(
    2 * np.pi * rng.uniform(200, 900) * time
  ) + 0.01 * rng.standard_normal(len(time))
  return {'type': 'audio', 'wave': wave.astype(np.float32)}


def text(words: str) -> dict[str, Any]:
  return {'type': 'text', 'text': words}


def chat(
  name: str, asked: list[dict], answered: list[dict], **controls: str
) -> dict[str, Any]:
  return {
    'id': name,
    'messages': [
      {'role': 'user', 'content': asked},
      {'role': 'assistant', 'content': answered, **controls},
    ],
  }


def examples(seed: int = 0) -> list[dict[str, Any]]:
  """One example of every kind: each modality read, each written, all three in one reply, a small image, plain form."""
  rng = np.random.default_rng(seed)
  return [
    chat('see', [picture(rng)], [text('two')], task='write', language='en'),
    chat('draw', [sound(rng)], [picture(rng)], task='draw'),
    chat(
      'say',
      [picture(rng, 4, 6)],
      [sound(rng, 2)],
      task='speak',
      language='de',
      voice='f1',
    ),
    chat(
      'reply',
      [text('a?')],
      [text('b'), picture(rng, 4, 4), sound(rng, 2)],
      task='reply',
    ),
    {
      'id': 'plain',
      'content': [text('x'), sound(rng, 2), picture(rng, 6, 4), text('y')],
    },
  ]


def same_pixels(left: np.ndarray, right: np.ndarray) -> bool:
  """Whether drawn images, whose pixels are bytes, are equal but for a few that are rounded to the next level."""
  if left.shape != right.shape:
    return False
  levels = np.abs(left - right) * 255
  return levels.max() < 1.5 and (levels > 0.5).mean() < 0.05


def same_parts(left: Sequence[Part], right: Sequence[Part]) -> bool:
  """Whether two replies are equal: texts and sounds (or their codes) are the same, images up to rounding."""
  if [part.type for part in left] != [part.type for part in right]:
    return False
  same = {
    'text': lambda a, b: a.text == b.text,
    'image': lambda a, b: same_pixels(a.pixels, b.pixels),
    'audio': lambda a, b: (
      a.wave.shape == b.wave.shape and np.allclose(a.wave, b.wave, atol=1e-5)
    ),
  }
  return all(same[a.type](a, b) for a, b in zip(left, right, strict=True))


def laid(model: ModelConfig, seed: int = 0) -> list[Laid]:
  hosts = model.hosts()
  return [prepare(example, hosts) for example in examples(seed)]


def packed(items: list[Laid], hosts: Hosts, budget: RowBudget = BUDGET) -> Batch:
  """All items in one batch, several a row."""
  packer = Packer(budget, hosts)
  assert all([packer.add(item) for item in items]), (
    'the batch is too small for the samples'
  )
  return packer.batch()


def codec_values(model: ModelConfig, seed: int = 0) -> dict[str, Any]:
  """An untrained codec whose codebooks are noise, so that every code is used."""
  values = init_autoencoder(model, 'codec', seed=seed)
  books = init_buffers(model.autoencoders['codec'])
  noise = jax.random.normal(jax.random.key(seed), books.codebook_JEZ.shape)
  books = books._replace(
    codebook_JEZ=noise, count_JE=jnp.ones_like(books.count_JE), sum_JEZ=noise
  )
  return {'params': values['params'], 'buffers': {'codebooks': books._asdict()}}


def frozen_values(model: ModelConfig, seed: int = 0) -> dict[str, Any]:
  """Values of all autoencoders, by name."""
  return {'codec': codec_values(model, seed)} if model.autoencoders else {}


def rows(budget: RowBudget, n: int) -> RowBudget:
  return dataclasses.replace(budget, rows=n)


def omni_optimizer(
  config: ModelConfig, steps: int = 1, optim: OptimConfig | None = None, **options: Any
) -> optax.GradientTransformation:
  """Returns the optimizer of a run of the omni stage with this network."""
  roles = param_roles(abstract(config))
  return make_optimizer(optim or OptimConfig(), steps, roles, **options)


class Kit(NamedTuple):
  """A tiny model ready to train. `step` and `forward` are jitted and run under the kit's mesh.

  Attributes:
    model: abstract.
    state: fresh.
    forward: (params, buffers, batch, key) -> BatchLosses.
  """

  config: ModelConfig
  model: OmniModel
  mesh: Mesh
  state: TrainState
  step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
  forward: Callable[..., Any]

  def meshed(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under jit and under the kit's mesh."""
    jitted = jax.jit(function)

    def run(*args):
      with jax.set_mesh(self.mesh):
        return jitted(*args)

    return run


def make_kit(
  config: ModelConfig,
  tx: optax.GradientTransformation,
  losses: LossConfig | None = None,
  accumulate: int = 1,
  **sizes: int,
) -> Kit:
  """Weights and optimizer moments placed by the table of rules, as the omni stage does it."""
  mesh, model = make_mesh(sizes), abstract(config)
  init = lambda values: states.init_model_state(config, tx, values, seed=0)
  values = frozen_values(config)
  layout = states.shardings(jax.eval_shape(init, values), param_specs(model), mesh)
  # Not made in place: so every mesh starts from the same bits.
  state = jax.device_put(jax.jit(init)(values), layout)
  objective = Pretraining(losses or LossConfig(), mesh)
  update = Update(accumulate=accumulate, refresh=objective.refresh)
  step = make_step(objective, model, tx, update)
  jitted = jax.jit(step, out_shardings=(layout, None))

  def run(state, batch):
    with jax.set_mesh(mesh):
      return jitted(state, place(batch, mesh))

  kit = Kit(config, model, mesh, state, run, batch_losses)
  forward = functools.partial(batch_losses, model=model, mesh=mesh)
  return kit._replace(forward=kit.meshed(forward))
