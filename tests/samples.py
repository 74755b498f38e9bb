"""Provides small models, examples and batches to many tests."""

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
from omni_jax.data.example_maker import prepare
from omni_jax.modalities.audio.codec import CodecConfig
from omni_jax.modalities.audio.embed import AudioEmbedConfig
from omni_jax.modalities.audio.head import CodecHeadConfig
from omni_jax.modalities.audio.quantizer import init_buffers
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.contract import Part
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image.embed import ImageEmbedConfig
from omni_jax.modalities.image.head import DiTConfig
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.model import abstract, batch_losses, ModelConfig, OmniModel
from omni_jax.nn.decoder import DecoderConfig
from omni_jax.objective import LossConfig, Pretraining
from omni_jax.sequence.pack import LaidOut, Packer
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
IMAGES = ImageConfig()
SOUNDS = AudioConfig()
TOKENS = TokenizerConfig()
# The dataclasses of parts of the config, by name of the part.
PARTS = {
  'model.decoder': DecoderConfig,
  'model.image.embed': ImageEmbedConfig,
  'model.image.head': DiTConfig,
  'model.audio.embed': AudioEmbedConfig,
  'model.audio.head': CodecHeadConfig,
  'model.codec': CodecConfig,
  'codec.optim': OptimConfig,
  'omni.optim': OptimConfig,
}
# Settings of a `loop.Stage` that checkpoints only at its end.
STAGE_OPTIONS: dict[str, Any] = dict(
  log_every=1, save_every=100, bad_steps=0, repeat_every=0, about={}
)
LOSSES = LossConfig({}, balance=0.01, z=0.001)
SOUND_RATE = 8000  # samples per second of `sound`
FRAME_SAMPLES = 640  # samples of a frame: 80 ms


def mark_long_except(cases: Sequence[Any], *always: int) -> list[Any]:
  """Returns the cases of a parametrised test, most of them marked as long.

  Args:
    always: indices of the cases that also run without --long.
  """
  marked = []
  for i, case in enumerate(cases):
    if i not in always:
      values = case if isinstance(case, tuple) else (case,)
      case = pytest.param(*values, marks=pytest.mark.long)
    marked.append(case)
  return marked


def tiny_run() -> ConfigDict:
  """Returns the config of configs/tiny.py."""
  return config('tiny')


def config(name: str) -> ConfigDict:
  """Returns the config of configs/NAME.py."""
  return config_file(str(ROOT / 'configs' / 'base.py'), name)['get_config']()


def data_config(**values: Any) -> ConfigDict:
  """Returns `config.data` of configs/base.py with some values replaced."""
  data = config('base').data.to_dict() | values
  return ConfigDict(data)


def part(name: str, **changes: Any) -> Any:
  """Returns a part of configs/base.py as its dataclass, with some values replaced.

  Args:
    name: name of the part without the leading 'config.', such as 'model.decoder'.
  """
  values = config('base')
  for key in name.split('.'):
    values = values[key]
  return PARTS[name](**values.to_dict() | changes)


def hosts_of(
  *,
  image: ImageConfig = IMAGES,
  audio: AudioConfig = SOUNDS,
  tokenizer: TokenizerConfig = TOKENS,
) -> Hosts:
  """Returns the hosts of images and sounds, without a model."""
  return Hosts({'image': image, 'audio': audio}, Tokenizer(tokenizer))


def tiny_model(**decoder: Any) -> ModelConfig:
  """Returns the network of configs/tiny.py for clips of half a second.

  Half of the drawings are trained without their condition.

  Args:
    decoder: values that replace those of `config.model.decoder`.
  """
  model = tiny_run().model
  model.audio.seconds = 0.48
  model.image.head.null = 0.5
  model.decoder.update(decoder)
  return ModelConfig.from_config(model)


def picture(
  rng: np.random.Generator, height: int = 8, width: int = 8
) -> dict[str, Any]:
  """Returns an image part of random grey pixels."""
  return {'type': 'image', 'pixels': rng.random((height, width, 1), np.float32)}


def sound(rng: np.random.Generator, frames: int = 3) -> dict[str, Any]:
  """Returns an audio part: a tone with a little noise. Its last frame is half full."""
  samples = round((frames - 0.5) * FRAME_SAMPLES)
  time = np.arange(samples) / SOUND_RATE
  hertz = rng.uniform(200, 900)
  tone = 0.3 * np.sin(2 * np.pi * hertz * time)
  wave = tone + 0.01 * rng.standard_normal(samples)
  return {'type': 'audio', 'wave': wave.astype(np.float32)}


def make_unreadable(path: pathlib.Path, field: str) -> None:
  """Changes a zip file so that Python cannot unpack its members.

  Args:
    field: 'encrypted' or 'compression': members get a password, or an unknown method.
  """
  offset, value = {'encrypted': (8, 1), 'compression': (10, 97)}[field]
  data = bytearray(path.read_bytes())
  start = data.find(b'PK\x01\x02')  # an entry of the central directory
  while start >= 0:
    data[start + offset] = value
    start = data.find(b'PK\x01\x02', start + 1)
  path.write_bytes(data)


def text(words: str) -> dict[str, Any]:
  """Returns a text part."""
  return {'type': 'text', 'text': words}


def chat(
  name: str, question: list[dict], answer: list[dict], **controls: str
) -> dict[str, Any]:
  """Returns an example of one question and one answer, each a list of parts."""
  user = {'role': 'user', 'content': question}
  assistant = {'role': 'assistant', 'content': answer, **controls}
  return {'id': name, 'messages': [user, assistant]}


def examples(seed: int = 0) -> list[dict[str, Any]]:
  """Returns one example of every kind.

  Each medium is read, and each is written; one reply has all three, one image is small,
  and one example is in plain form.
  """
  rng = np.random.default_rng(seed)
  see = chat('see', [picture(rng)], [text('two')], task='write', language='en')
  draw = chat('draw', [sound(rng)], [picture(rng)], task='draw')
  question = [picture(rng, 4, 6)]
  answer = [sound(rng, 2)]
  say = chat('say', question, answer, task='speak', language='de', voice='f1')
  answer = [text('b'), picture(rng, 4, 4), sound(rng, 2)]
  reply = chat('reply', [text('a?')], answer, task='reply')
  content = [text('x'), sound(rng, 2), picture(rng, 6, 4), text('y')]
  plain = {'id': 'plain', 'content': content}
  return [see, draw, say, reply, plain]


def same_pixels(left: np.ndarray, right: np.ndarray) -> bool:
  """Returns whether two drawn images are equal up to rounding of a few pixels.

  Pixels are bytes scaled to 0…1; up to 5 % of them may differ by one level.
  """
  if left.shape != right.shape:
    return False
  levels = np.abs(left - right) * 255
  return levels.max() < 1.5 and (levels > 0.5).mean() < 0.05


def same_parts(left: Sequence[Part], right: Sequence[Part]) -> bool:
  """Returns whether two replies are equal: text exactly, media up to rounding."""
  if [part.type for part in left] != [part.type for part in right]:
    return False
  same = {'text': _same_text, 'image': _same_image, 'audio': _same_audio}
  return all(same[a.type](a, b) for a, b in zip(left, right, strict=True))


def _same_text(left: Part, right: Part) -> bool:
  return left.text == right.text


def _same_image(left: Part, right: Part) -> bool:
  return same_pixels(left.pixels, right.pixels)


def _same_audio(left: Part, right: Part) -> bool:
  same_shape = left.wave.shape == right.wave.shape
  return same_shape and np.allclose(left.wave, right.wave, atol=1e-5)


def laid_out_examples(model: ModelConfig, seed: int = 0) -> list[LaidOut]:
  """Returns one example of every kind, laid out for a model."""
  hosts = model.hosts()
  return [prepare(example, hosts) for example in examples(seed)]


def packed_batch(
  items: list[LaidOut], hosts: Hosts, budget: RowBudget = BUDGET
) -> Batch:
  """Returns all items in one batch, several per row."""
  packer = Packer(budget, hosts)
  for item in items:
    assert packer.add(item), 'the batch is too small for the samples'
  return packer.batch()


def codec_values(model: ModelConfig, seed: int = 0) -> dict[str, Any]:
  """Returns an untrained codec with codebooks of noise, so that it uses every code."""
  values = init_autoencoder(model, 'codec', seed=seed)
  buffers = init_buffers(model.autoencoders['codec'])
  noise = jax.random.normal(jax.random.key(seed), buffers.codebook_JEZ.shape)
  ones = jnp.ones_like(buffers.count_JE)
  buffers = buffers._replace(codebook_JEZ=noise, count_JE=ones, sum_JEZ=noise)
  return {'params': values['params'], 'buffers': {'codebooks': buffers._asdict()}}


def frozen_values(model: ModelConfig, seed: int = 0) -> dict[str, Any]:
  """Returns the values of all autoencoders of a model, by name."""
  return {'codec': codec_values(model, seed)} if model.autoencoders else {}


def with_rows(budget: RowBudget, n: int) -> RowBudget:
  """Returns the budget with another number of rows."""
  return dataclasses.replace(budget, rows=n)


def omni_optimizer(
  config: ModelConfig, steps: int = 1, optim: OptimConfig | None = None, **options: Any
) -> optax.GradientTransformation:
  """Returns the optimizer of the omni stage for this network."""
  roles = param_roles(abstract(config))
  optim = optim or part('omni.optim', kind='adamw')
  return make_optimizer(optim, steps, roles, **options)


class Kit(NamedTuple):
  """A tiny model, ready to train.

  Attributes:
    config: config of the model.
    model: abstract model.
    mesh: mesh on which `step` and `forward` run.
    state: state before the first update.
    step: jitted train step.
    forward: jitted (params, buffers, batch, key) -> BatchLosses.
  """

  config: ModelConfig
  model: OmniModel
  mesh: Mesh
  state: TrainState
  step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
  forward: Callable[..., Any]

  def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the jitted function, which runs on the kit's mesh."""
    jitted = jax.jit(function)

    def run(*args: Any) -> Any:
      with jax.set_mesh(self.mesh):
        return jitted(*args)

    return run


def make_kit(
  config: ModelConfig,
  tx: optax.GradientTransformation,
  losses: LossConfig = LOSSES,
  accumulate: int = 1,
  **sizes: int,
) -> Kit:
  """Returns a kit whose weights and optimizer moments are placed as in the omni stage.

  Args:
    tx: optimizer.
    losses: weights of the losses.
    accumulate: number of parts of a batch.
    sizes: sizes of the mesh axes.
  """
  mesh = make_mesh(sizes)
  model = abstract(config)
  init = lambda values: states.init_model_state(config, tx, values, seed=0)
  values = frozen_values(config)
  shapes = jax.eval_shape(init, values)
  shardings = states.shardings(shapes, param_specs(model), mesh)
  # Initialised on one device, then placed: every mesh starts from the same bits.
  state = jax.device_put(jax.jit(init)(values), shardings)
  objective = Pretraining(losses, mesh, bias_step=1e-3)
  update = Update(accumulate=accumulate, refresh=objective.refresh)
  step = make_step(objective, model, tx, update)
  jitted = jax.jit(step, out_shardings=(shardings, None))

  def run(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    with jax.set_mesh(mesh):
      return jitted(state, place(batch, mesh))

  kit = Kit(config, model, mesh, state, run, batch_losses)
  forward = functools.partial(batch_losses, model=model, mesh=mesh)
  return kit._replace(forward=kit.jit(forward))
