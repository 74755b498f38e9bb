"""`load(workdir).generate(content, want='any', seed=0) -> list[Part]`: the Python side of generation."""

import base64
from collections.abc import Sequence
import dataclasses
import functools
import json
from typing import Any

from etils import epath
from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from omni_jax import sharding
from omni_jax.data.interleave import Example, interleave, prompt_spans
from omni_jax.data.media import png_bytes, wav_bytes
from omni_jax.data.pack import lay_out, Laid, pack_rows
from omni_jax.errors import UserError
from omni_jax.generate.decode import decode, draw, Sampling
from omni_jax.generate.grammar import grammar, Mode
from omni_jax.generate.prefill import prefill, Rows
from omni_jax.generate.prompt import chat
from omni_jax.modalities.audio.codec import Codec
from omni_jax.modalities.audio.quantizer import CodecBuffers, dequantize, quantize
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.model import abstract, Encoded, encode_media, merge, OmniConfig
from omni_jax.train.checkpoint import Checkpoints
from omni_jax.train.state import init_omni
from omni_jax.train.step import omni_losses
from omni_jax.types import RowBudget

BATCH = 64  # rows that are written together; more prompts take turns
PIECE = 32  # prompts are padded to a multiple, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class Part:
  """A piece of a reply; in a notebook it shows itself as text, picture or player.

  Attributes:
    type: 'text', 'image' or 'audio'; of the fields below the one of that type is there.
    pixels: float32 in [0, 1], shape (height, width, channels).
    wave: float32 in [-1, 1], shape (samples,), at `rate` samples per second.
  """
  type: str
  text: str | None = None
  pixels: np.ndarray | None = None
  wave: np.ndarray | None = None
  rate: int | None = None

  def _repr_html_(self) -> str:
    if self.type == 'text':
      return f'<p>{self.text}</p>'.replace('&', '&amp;') if '<' not in self.text else f'<pre>{json.dumps(self.text)}</pre>'
    if self.type == 'image':
      data = base64.b64encode(png_bytes(self.pixels)).decode()
      return f'<img style="image-rendering:pixelated;min-width:8em" src="data:image/png;base64,{data}">'
    data = base64.b64encode(wav_bytes(self.wave, self.rate)).decode()
    return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'


class Omni:
  """A restored run: config, parameters and buffers, and the jitted programs that generate."""

  def __init__(self, config: ConfigDict, step: int, params: Any, buffers: Any):
    self.config, self.step, self.params, self._buffers = config, step, params, buffers
    self.omni = OmniConfig.from_config(config.model)
    self.tokenizer = Tokenizer(self.omni.tokenizer)
    self._mesh = sharding.make_mesh({})
    self._model = abstract(self.omni)
    self._codec = nnx.eval_shape(lambda: Codec(self.omni.codec, self.omni.media.audio, rngs=nnx.Rngs(0)))
    self._codebooks = CodecBuffers(**buffers['codec']['codebooks'])
    parts = dict(model=self._model, mesh=self._mesh)
    self._prefill = jax.jit(functools.partial(prefill, **parts), static_argnames=('slots', 'max_new'))
    self._decode = jax.jit(functools.partial(decode, **parts))
    self._draw = jax.jit(functools.partial(draw, **parts), static_argnames='steps')
    self._encode = jax.jit(lambda p, b, wave: encode_media(merge(self._codec, p), b, wave[:, None]).code_BNJ)
    self._speak = jax.jit(lambda p, b, code: merge(self._codec, p).decode(dequantize(code, b)))
    self._losses = jax.jit(functools.partial(omni_losses, codec=self._codec, **parts))

  def generate(self, content: Any, want: str = 'any', seed: int = 0, **options: Any) -> list[Part]:
    """Answers one prompt: text, a list of content parts, or an example in the chat form.

    Args:
      want: 'text', 'image', 'audio', or 'any' for what the model itself opens.
      options: as of `generate_batch`, and `language`, `voice` for prompts that are not in the chat form.
    """
    control = {key: options.pop(key) for key in ('language', 'voice') if key in options}
    return self.generate_batch([chat(content, want, **control)], want, seed, **options)[0]

  def generate_batch(self, prompts: Sequence[Example], want: str = 'any', seed: int = 0, **options: Any) -> list[list[Part]]:
    """Answers prompts in the chat form, whose last message is the assistant's, with nothing written yet.

    Args:
      options: temperature, top_p, speech_temperature, guidance, max_new, dit_steps; defaults in config.generate.

    Raises:
      UserError: for an unknown want or option, or a prompt that leaves no room in the context.
    """
    settings = self._settings(options)
    rules = jax.tree.map(jnp.asarray, grammar(self.tokenizer, want))
    laid = [lay_out(prompt_spans(prompt, self.tokenizer), self.tokenizer, self.omni.media) for prompt in prompts]
    self._check_room(laid)
    replies: list[list[Part]] = []
    for first in range(0, len(laid), BATCH):
      piece = laid[first:first + BATCH]
      keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(first, first + self._padded(piece)))
      with jax.set_mesh(self._mesh):
        replies += self._reply(piece, rules, settings, keys)
    return replies

  def _padded(self, piece: Sequence[Laid]) -> int:
    return BATCH if len(piece) > 1 else 1

  def _settings(self, options: dict[str, Any]) -> dict[str, Any]:
    settings = self.config.generate.to_dict()
    if unknown := sorted(set(options) - set(settings)):
      raise UserError(f'unknown option of generation: {unknown}; there are {sorted(settings)}')
    return settings | options

  def _check_room(self, laid: Sequence[Laid]) -> None:
    context = self.config.data.budget.length
    for prompt in laid:
      if prompt.length >= context:
        raise UserError(f'the prompt has {prompt.length} positions, the context of this model {context}; '
                        f'shorten the prompt')

  def _batch(self, laid: Sequence[Laid], rows: int):
    most = lambda name: max(1, max(len(getattr(x, name)) for x in laid))
    length = -(-max(x.length for x in laid) // PIECE) * PIECE
    budget = RowBudget(rows, length, most('seen'), most('drawn'), most('heard'), most('spoken'), most('speak_at_Q'))
    return pack_rows(list(laid) + [laid[0]] * (rows - len(laid)), budget, self.omni.media)

  def _reply(self, laid: Sequence[Laid], rules: Any, settings: dict[str, Any], keys: jax.Array) -> list[list[Part]]:
    batch = self._batch(laid, self._padded(laid))
    bias, codec = self._buffers['router_bias'], self._buffers['codec']
    spoken = jnp.asarray(batch.spoken_BMS)
    flat = self._encode(codec['params'], self._codebooks, spoken.reshape(-1, spoken.shape[-1]))
    encoded = Encoded(flat.reshape(spoken.shape[0], -1, flat.shape[-1]))
    sampling = Sampling(*(jnp.float32(settings[name]) for name in Sampling._fields))
    # One image in a reply is what the room is made for; `any` may draw more, until its room is used up.
    images = max(1, settings['max_new'] // 16)
    slots = batch.token_BL.shape[1] + settings['max_new'] + images * (2 * self.omni.media.image.patches + 1)
    rows = self._prefill(self.params, bias, batch, encoded, keys, slots=slots, max_new=settings['max_new'])
    pictures: list[list[np.ndarray]] = [[] for _ in keys]
    while True:
      rows = self._decode(self.params, bias, rows, rules, sampling)
      drawing = np.asarray(rows.mode_B) == Mode.DRAW
      drawing &= np.array([len(done) < images for done in pictures])
      if not drawing.any():
        break
      rows, pixels = self._draw(self.params, bias, rows, rules, sampling, steps=settings['dit_steps'])
      for row in np.flatnonzero(drawing):
        pictures[row].append(np.asarray(pixels[row]))
    return self._parts(rows, pictures)[:len(laid)]

  def _parts(self, rows: Rows, pictures: list[list[np.ndarray]]) -> list[list[Part]]:
    """Ids, codes and pictures of each row -> parts in the order in which they were written."""
    name_of, image = self.tokenizer.name, self.omni.media.image
    replies, sounds = [], []
    for tokens, codes, drawn in zip(np.asarray(rows.token_BO).tolist(), np.asarray(rows.code_BOJ), pictures, strict=True):
      parts: list[Part] = []
      text: list[int] = []
      drawn, spoken, sizes = list(drawn), [], []
      for token, code in zip(tokens + [0], [*codes, None], strict=True):
        name = name_of(token)
        if name is None:
          text.append(token)
          continue
        if text:
          parts.append(Part('text', text=self.tokenizer.decode(tuple(text))))
          text = []
        if name == 'frame':
          spoken.append(code)
        elif spoken:
          sounds.append((parts, len(parts), np.stack(spoken)))
          parts.append(Part('audio', rate=self.omni.media.audio.rate))
          spoken = []
        if name.startswith('size:'):
          sizes.append(int(name[5:]) * image.patch)
          if len(sizes) == 2 and drawn:
            parts.append(Part('image', pixels=drawn.pop(0)[:sizes[0], :sizes[1]]))
          sizes = sizes if len(sizes) < 2 else []
      replies.append(parts)
    waves = self.codec_decode([codes for _, _, codes in sounds])
    for (parts, i, _), wave in zip(sounds, waves, strict=True):
      parts[i] = dataclasses.replace(parts[i], wave=wave)
    return replies

  def codec_encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Waves -> codes (frames, codebooks) of the speech codec."""
    audio, codec, codes = self.omni.media.audio, self._buffers['codec'], []
    for first in range(0, len(waves), BATCH):
      padded = np.zeros((BATCH, audio.samples), np.float32)
      for row, wave in zip(padded, waves[first:first + BATCH], strict=False):
        row[:len(wave)] = wave
      made = np.asarray(self._encode(codec['params'], self._codebooks, padded))
      codes += [code[:-(-len(wave) // audio.frame)] for code, wave in zip(made, waves[first:first + BATCH], strict=False)]
    return codes

  def codec_decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes (frames, codebooks) -> waves of whole frames. The codec is causal: padding behind a clip is harmless."""
    audio, codec, waves = self.omni.media.audio, self._buffers['codec'], []
    for first in range(0, len(codes), BATCH):
      padded = np.zeros((BATCH, audio.frames, self.omni.codec.codebooks), np.int32)
      for row, code in zip(padded, codes[first:first + BATCH], strict=False):
        row[:len(code)] = code
      made = np.asarray(self._speak(codec['params'], self._codebooks, padded))
      waves += [wave[:len(code) * audio.frame] for wave, code in zip(made, codes[first:first + BATCH], strict=False)]
    return waves

  def loss(self, examples: Sequence[Example]) -> dict[str, float]:
    """Loss of each head on examples with answers, weighted by what each example holds of it (nats; squared error)."""
    laid = [lay_out(interleave(x, self.tokenizer), self.tokenizer, self.omni.media, str(x.get('id', ''))) for x in examples]
    totals: dict[str, np.ndarray] = {}
    for first in range(0, len(laid), BATCH):
      piece = laid[first:first + BATCH]
      for one in ([piece] if len(piece) == BATCH else [[x] for x in piece]):
        with jax.set_mesh(self._mesh):
          heads, _ = self._losses(self.params, self._buffers, self._batch(one, len(one)), jax.random.key(0))
        for name, head in heads.items():
          totals[name] = totals.get(name, np.zeros(2)) + np.array([head.total, head.weight])
    return {name: float(total / weight) for name, (total, weight) in totals.items() if weight}


def load(workdir: str, step: int | None = None) -> Omni:
  """Restores a run's parameters and buffers, on any number of devices.

  Raises:
    UserError: if there is no such run or step, or if its arrays do not fit its config.
  """
  path = epath.Path(workdir) / 'config.json'
  if not path.exists():
    raise UserError(f'{workdir} holds no run: {path} is missing; train first, or check --workdir')
  config = ConfigDict(json.loads(path.read_text()))
  omni = OmniConfig.from_config(config.model)

  def init():
    from omni_jax.train.optim import make_optimizer, OptimConfig
    from omni_jax.train.state import codec_values, init_codec
    tx = make_optimizer(OptimConfig(), 1)
    state = init_omni(omni, tx, codec_values(init_codec(omni, tx, seed=0)), seed=0)
    return {'params': state.params, 'buffers': state.buffers}

  whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(init))
  with Checkpoints(workdir, 'omni', read_only=True) as checkpoints:
    model, found = checkpoints.restore_model(like, step)
  return Omni(config, found, model['params'], model['buffers'])
