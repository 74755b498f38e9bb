"""`load(workdir).generate(content, want='any', seed=0) -> list[Part]`: the Python side of generation."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from omni_jax import sharding
from omni_jax.checkpoint.restore import restore_run
from omni_jax.errors import UserError
from omni_jax.generate.decode import decode, draw, Sampling
from omni_jax.generate.grammar import Grammar, grammar, Mode
from omni_jax.generate.prefill import prefill, Room
from omni_jax.generate.prompt import chat
from omni_jax.generate.reply import Part, parts_of, with_sound
from omni_jax.modalities.audio.codec import Codec
from omni_jax.modalities.audio.host import frames_of
from omni_jax.modalities.audio.quantizer import CodecBuffers, dequantize
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.model import abstract, codes_of, encode_media, Encoded, merge, OmniConfig
from omni_jax.sequence.example import Example
from omni_jax.sequence.interleave import interleave, prompt_spans
from omni_jax.sequence.pack import Laid, lay_out, pack_rows, ROOM
from omni_jax.train.step import omni_losses
from omni_jax.types import Batch, RowBudget

BATCH = 64  # rows that are written together; more prompts take turns
PIECE = 32  # prompts and spoken frames are padded to a multiple, so that few lengths are compiled
POSITIONS_PER_IMAGE = 8  # of `max_new`: how many images a reply has room for


class Omni:
  """A restored run: config, parameters and buffers, and the jitted programs that generate."""

  def __init__(
    self,
    config: ConfigDict,
    step: int,
    params: Any,
    buffers: Any,
    mesh: Mesh | None = None,
  ):
    self.config, self.step = config, step
    self.omni = OmniConfig.from_config(config.model)
    self.tokenizer = Tokenizer(self.omni.tokenizer)
    self._mesh = mesh or sharding.make_mesh({}, jax.local_devices()[:1])
    self.params, self._buffers = params, buffers
    if mesh is not None:
      fit = lambda x, spec: sharding.fitting(mesh, spec, x.shape)
      self.params = jax.device_put(
        params, jax.tree.map(fit, params, sharding.param_specs(abstract(self.omni)))
      )
      self._buffers = jax.device_put(buffers, sharding.replicated(mesh))
    codec = nnx.eval_shape(
      lambda: Codec(self.omni.codec, self.omni.media.audio, rngs=nnx.Rngs(0))
    )
    self._codebooks = CodecBuffers(**self._buffers['codec']['codebooks'])
    parts = dict(model=abstract(self.omni), mesh=self._mesh)
    self._prefill = jax.jit(functools.partial(prefill, **parts), static_argnames='room')
    self._decode = jax.jit(functools.partial(decode, **parts))
    self._draw = jax.jit(functools.partial(draw, **parts), static_argnames='steps')
    self._encode = jax.jit(
      lambda params, books, batch: encode_media(
        self.omni, merge(codec, params), books, batch
      )
    )
    self._codes = jax.jit(
      lambda params, books, frame_BRS, clip_BR: codes_of(
        merge(codec, params), books, frame_BRS, clip_BR
      )
    )
    self._speak = jax.jit(
      lambda params, books, code: merge(codec, params).decode(dequantize(code, books))
    )
    self._losses = jax.jit(functools.partial(omni_losses, codec=codec, **parts))

  def generate(
    self, content: Any, want: str = 'any', seed: int = 0, **options: Any
  ) -> list[Part]:
    """Answers one prompt: text, a list of content parts, or an example in the chat form.

    Args:
      want: 'text', 'image', 'audio', or 'any' for what the model itself opens.
      options: as of `generate_batch`; also `language` and `voice` of the answer.
    """
    control = {key: options.pop(key) for key in ('language', 'voice') if key in options}
    return self.generate_batch([chat(content, want, **control)], want, seed, **options)[
      0
    ]

  def generate_batch(
    self, prompts: Sequence[Example], want: str = 'any', seed: int = 0, **options: Any
  ) -> list[list[Part]]:
    """Answers prompts in the chat form, whose last message is the assistant's, with nothing written yet.

    A reply depends on its prompt, the seed and its number, not on its neighbours.

    Args:
      options: temperature, top_p, speech_temperature, guidance, max_new, dit_steps; defaults in config.generate.

    Raises:
      UserError: for an unknown want or option, or a prompt that leaves no room in the context.
    """
    settings = self.config.generate.to_dict()
    if unknown := sorted(set(options) - set(settings)):
      raise UserError(
        f'unknown option of generation: {unknown}; there are {sorted(settings)}'
      )
    rules = jax.tree.map(jnp.asarray, grammar(self.tokenizer, want))
    laid = [
      lay_out(prompt_spans(prompt, self.tokenizer), self.tokenizer, self.omni.media)
      for prompt in prompts
    ]
    self._check_room(laid)
    numbered = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))
    replies: list[list[Part]] = []
    for first in range(0, len(laid), BATCH):
      piece = laid[first : first + BATCH]
      rows = BATCH if len(laid) > 1 else 1
      with jax.set_mesh(self._mesh):
        written = self._write(
          piece, rules, settings | options, numbered(jnp.arange(first, first + rows))
        )
      replies += written[: len(piece)]
    return with_sound(replies, self.codec_decode, self.omni.media.audio.rate)

  def _check_room(self, laid: Sequence[Laid]) -> None:
    context = self.config.data.budget.length
    for prompt in laid:
      if prompt.length >= context:
        raise UserError(
          f'the prompt has {prompt.length} positions, the context of this model {context}: shorten it'
        )

  def _rows(self, laid: Sequence[Laid], rows: int) -> Batch:
    """One example per row; rows that are left over repeat the first."""
    most = dict(
      zip(
        ROOM,
        np.maximum(1, np.max([x.needs for x in laid], axis=0)).tolist(),
        strict=True,
      )
    )
    padded = {
      name: _whole_pieces(most[name])
      for name in ('length', 'heard_frames', 'spoken_frames')
    }
    budget = RowBudget(rows, **most | padded)
    return pack_rows([*laid, *[laid[0]] * (rows - len(laid))], budget, self.omni.media)

  def _write(
    self,
    laid: Sequence[Laid],
    rules: Grammar,
    settings: dict[str, Any],
    key_B: jax.Array,
  ) -> list[list[Part]]:
    """The replies of one batch of prompts, sounds still as codes."""
    batch = self._rows(laid, len(key_B))
    bias, codec, image = (
      self._buffers['router_bias'],
      self._buffers['codec'],
      self.omni.media.image,
    )
    encoded: Encoded = self._encode(codec['params'], self._codebooks, batch)
    sampling = Sampling(*(jnp.float32(settings[name]) for name in Sampling._fields))
    most = max(1, settings['max_new'] // POSITIONS_PER_IMAGE)
    slots = (
      batch.token_BL.shape[1] + settings['max_new'] + most * (2 * image.patches + 1)
    )
    rows = self._prefill(
      self.params, bias, batch, encoded, key_B, room=Room(slots, settings['max_new'])
    )
    pictures: list[list[np.ndarray]] = [[] for _ in key_B]
    while True:
      rows = self._decode(self.params, bias, rows, rules, sampling)
      drawing = np.flatnonzero(np.asarray(rows.mode_B) == Mode.DRAW)
      if not len(drawing) or max(len(pictures[row]) for row in drawing) == most:
        break
      rows, pixels_Bhwc = self._draw(
        self.params, bias, rows, rules, sampling, steps=settings['dit_steps']
      )
      for row in drawing:
        pictures[row].append(np.asarray(pixels_Bhwc[row]))
    return [
      parts_of(tokens, codes, drawn, self.tokenizer, image.patch)
      for tokens, codes, drawn in zip(
        np.asarray(rows.token_BO).tolist(),
        np.asarray(rows.code_BOJ),
        pictures,
        strict=True,
      )
    ]

  def codec_encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Waves -> codes (frames, codebooks) of the speech codec."""
    audio, codec, codes = self.omni.media.audio, self._buffers['codec'], []
    for first in range(0, len(waves), BATCH):
      piece = waves[first : first + BATCH]
      frames = [frames_of(wave, audio) for wave in piece]
      padded = np.zeros((BATCH, _whole_pieces(max(frames)), audio.frame), np.float32)
      for row, wave in zip(padded, piece, strict=False):
        row.reshape(-1)[: len(wave)] = wave
      made = self._codes(
        codec['params'], self._codebooks, padded, np.ones(padded.shape[:2], np.int32)
      )
      codes += [code[:n] for code, n in zip(np.asarray(made), frames, strict=False)]
    return codes

  def codec_decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes (frames, codebooks) -> waves of whole frames. The codec is causal: padding behind a clip is harmless."""
    audio, codec, waves = self.omni.media.audio, self._buffers['codec'], []
    for first in range(0, len(codes), BATCH):
      piece = codes[first : first + BATCH]
      padded = np.zeros(
        (BATCH, _whole_pieces(max(map(len, piece))), self.omni.codec.codebooks),
        np.int32,
      )
      for row, code in zip(padded, piece, strict=False):
        row[: len(code)] = code
      made = np.asarray(self._speak(codec['params'], self._codebooks, padded))
      waves += [
        wave[: len(code) * audio.frame] for wave, code in zip(made, piece, strict=False)
      ]
    return waves

  def loss(self, examples: Sequence[Example]) -> dict[str, float]:
    """Mean loss of each head on examples with answers (nats per token, squared error, nats per frame)."""
    lay = lambda x: lay_out(
      interleave(x, self.tokenizer),
      self.tokenizer,
      self.omni.media,
      str(x.get('id', '')),
    )
    laid = [lay(example) for example in examples]
    totals: dict[str, np.ndarray] = {}
    whole = len(laid) // BATCH * BATCH
    for piece in [laid[i : i + BATCH] for i in range(0, whole, BATCH)] + [
      [x] for x in laid[whole:]
    ]:
      with jax.set_mesh(self._mesh):
        heads, _ = self._losses(
          self.params, self._buffers, self._rows(piece, len(piece)), jax.random.key(0)
        )
      for name, head in heads.items():
        totals[name] = totals.get(name, np.zeros(2)) + np.array(
          [head.total, head.weight]
        )
    return {
      name: float(total / weight) for name, (total, weight) in totals.items() if weight
    }


def _whole_pieces(n: int) -> int:
  return -(-n // PIECE) * PIECE


def load(
  workdir: str,
  step: int | None = None,
  weights: str = 'average',
  mesh: Mapping[str, int] | None = None,
) -> Omni:
  """Restores a run's parameters and buffers.

  Args:
    weights: 'average' (of the parameters, where the run keeps one) or 'raw'.
    mesh: sizes of the axes over which the parameters are then split, as `config.mesh` of a run; None for one device.

  Raises:
    UserError: if there is no such run or step, or if its arrays do not fit its config.
  """
  config, model, found = restore_run(workdir, step, weights)
  return Omni(
    config,
    found,
    model['params'],
    model['buffers'],
    None if mesh is None else sharding.make_mesh(mesh),
  )
