"""Small models, examples and batches that many tests share."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
import runpy
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
from omni_jax.train.losses import LossConfig
import optax
import pytest

from omni_jax.checkpoint.train_state import TrainState
from omni_jax.data.making import prepare
from omni_jax.modalities.audio.codec import Codec
from omni_jax.modalities.audio.quantizer import init_buffers
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.model import abstract, OmniConfig, OmniModel
from omni_jax.sequence.pack import Laid, Packer
from omni_jax.sharding import make_mesh, param_roles, param_specs, place
from omni_jax.train import state as states
from omni_jax.train.optim import make_optimizer, OptimConfig
from omni_jax.train.step import make_omni_step, omni_losses, Update
from omni_jax.types import Batch, MediaConfig, RowBudget

ROOT = pathlib.Path(__file__).parents[1]
BUDGET = RowBudget(rows=2, length=96, seen=2, drawn=2, heard_frames=8, spoken_frames=8)


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
  return runpy.run_path(str(ROOT / 'configs' / 'tiny.py'))['get_config']()


def tiny_model(**decoder: Any) -> OmniConfig:
  """The network of configs/tiny.py on clips of half a second; half of the drawings are made without their condition."""
  config = tiny_run().model
  config.audio.seconds = 0.48
  config.dit.null = 0.5
  config.decoder.update(decoder)
  return OmniConfig.from_config(config)


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


def laid(model: OmniConfig, seed: int = 0) -> list[Laid]:
  tokenizer = Tokenizer(model.tokenizer)
  return [prepare(example, tokenizer, model.media) for example in examples(seed)]


def packed(items: list[Laid], media: MediaConfig, budget: RowBudget = BUDGET) -> Batch:
  """All items in one batch, several a row."""
  packer = Packer(budget, media)
  assert all([packer.add(item) for item in items]), (
    'the batch is too small for the samples'
  )
  return packer.batch()


def codec_values(model: OmniConfig, seed: int = 0) -> dict[str, Any]:
  """An untrained codec whose codebooks are noise, so that every code is used."""
  params = nnx.to_pure_dict(
    nnx.state(Codec(model.codec, model.media.audio, rngs=nnx.Rngs(seed)), nnx.Param)
  )
  books = init_buffers(model.codec)
  noise = jax.random.normal(jax.random.key(seed), books.codebook_JEZ.shape)
  books = books._replace(
    codebook_JEZ=noise, count_JE=jnp.ones_like(books.count_JE), sum_JEZ=noise
  )
  return {'params': params, 'codebooks': books._asdict()}


def rows(budget: RowBudget, n: int) -> RowBudget:
  return dataclasses.replace(budget, rows=n)


def omni_optimizer(
  config: OmniConfig, steps: int = 1, optim: OptimConfig | None = None, **options: Any
) -> optax.GradientTransformation:
  """Returns the optimizer of a run of the omni stage with this network."""
  roles = param_roles(abstract(config))
  return make_optimizer(optim or OptimConfig(), steps, roles, **options)


class Kit(NamedTuple):
  """A tiny model ready to train. `step` and `forward` are jitted and run under the kit's mesh."""

  config: OmniConfig
  model: OmniModel  # abstract, as the codec
  codec: Codec
  mesh: Mesh
  state: TrainState  # fresh
  step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
  forward: Callable[
    ..., Any
  ]  # (params, buffers, batch, key) -> (losses of the heads, figures of the routers)

  def meshed(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under jit and under the kit's mesh."""
    jitted = jax.jit(function)

    def run(*args):
      with jax.set_mesh(self.mesh):
        return jitted(*args)

    return run


def make_kit(
  config: OmniConfig,
  tx: optax.GradientTransformation,
  losses: LossConfig | None = None,
  accumulate: int = 1,
  **sizes: int,
) -> Kit:
  """Weights and optimizer moments placed by the table of rules, as the omni stage does it."""
  mesh, model = make_mesh(sizes), abstract(config)
  codec = nnx.eval_shape(
    lambda: Codec(config.codec, config.media.audio, rngs=nnx.Rngs(0))
  )
  init = lambda values: states.init_omni(config, tx, values, seed=0)
  values = codec_values(config)
  layout = states.shardings(jax.eval_shape(init, values), param_specs(model), mesh)
  state = jax.device_put(
    jax.jit(init)(values), layout
  )  # not made in place: so every mesh starts from the same bits
  step = make_omni_step(
    model, codec, tx, losses or LossConfig(), mesh, Update(accumulate=accumulate)
  )
  jitted = jax.jit(step, out_shardings=(layout, None))

  def run(state, batch):
    with jax.set_mesh(mesh):
      return jitted(state, place(batch, mesh))

  kit = Kit(config, model, codec, mesh, state, run, omni_losses)
  return kit._replace(
    forward=kit.meshed(
      functools.partial(omni_losses, model=model, codec=codec, mesh=mesh)
    )
  )
