"""Heard mel frames (or codes) and the model's own codes to width."""

import dataclasses
import enum

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from omni_jax import sharding
from omni_jax.errors import UserError
from omni_jax.modalities.audio.mel import as_wave, levelled, log_mel_patches, with_past
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.nn.layers import Embedding, Linear, normal
from omni_jax.types import Stream

TAPS = 3  # columns that a convolution sees


class Hearing(enum.StrEnum):
  MEL = 'mel'  # continuous
  CODES = 'codes'  # discrete: what the speech codec makes of the clip, by the same table as the model's own speech


class Level(enum.StrEnum):
  """How loud a mel band is."""

  FIXED = 'fixed'  # as it is recorded
  CLIP = 'clip'  # against the mean of the clip: needs all of it, so not for speech that is answered while it goes on


@dataclasses.dataclass(frozen=True)
class AudioEmbedConfig:
  """How sounds are heard.

  Attributes:
    hearing, level: see Hearing and Level.
    channels: of two causal convolutions over mel columns, before a frame is formed; 0: none.
    hidden: width of the perceptron between a frame and the decoder.
  """

  hearing: Hearing | str = Hearing.MEL
  level: Level | str = Level.FIXED
  channels: int = 0
  hidden: int = 256

  def __post_init__(self):
    object.__setattr__(self, 'hearing', Hearing(self.hearing))
    object.__setattr__(self, 'level', Level(self.level))


class CausalConv(nnx.Module):
  """Three columns of a clip at a time, then the larger of every two: half as many columns."""

  def __init__(self, d_in: int, d_out: int, *, rngs: nnx.Rngs):
    self.mix = Linear(TAPS * d_in, d_out, (None, 'mlp'), rngs=rngs, bias=True)

  def __call__(
    self, x_NRCW: Float[Array, 'N R C W'], clip_NR: Int[Array, 'N R']
  ) -> Float[Array, 'N R half V']:
    n, r, columns, width = x_NRCW.shape
    past = with_past(x_NRCW.reshape(n, r, -1), clip_NR, (TAPS - 1) * width).reshape(
      n, r, -1, width
    )
    y = jax.nn.gelu(
      self.mix(
        jnp.concatenate([past[:, :, k : k + columns] for k in range(TAPS)], axis=-1)
      )
    )
    return y.reshape(n, r, columns // 2, 2, -1).max(axis=3)


class AudioEmbed(nnx.Module):
  """Continuous input (a perceptron on the mel columns of a frame), and sums of code embeddings for own speech."""

  def __init__(
    self,
    c: AudioEmbedConfig,
    audio: AudioConfig,
    codebooks: int,
    entries: int,
    width: int,
    *,
    rngs: nnx.Rngs,
  ):
    self.audio, self.codebooks, self.entries, self.level = (
      audio,
      codebooks,
      entries,
      c.level,
    )
    self.hearing = c.hearing
    if c.hearing == Hearing.MEL:
      if c.channels and audio.mel_hops % 4:
        raise UserError(
          f'config.model.audio.embed.channels={c.channels} halves the {audio.mel_hops} mel '
          'columns of a frame twice; set config.model.audio.mel_hops to a multiple of 4, or channels=0'
        )
      sizes = [(audio.mels, c.channels), (c.channels, c.channels)] if c.channels else []
      self.convs = nnx.List([CausalConv(*size, rngs=rngs) for size in sizes])
      frame = (
        audio.mel_hops // 4 * c.channels if c.channels else audio.mel_hops * audio.mels
      )
      self.mel_in = Linear(frame, c.hidden, (None, 'mlp'), rngs=rngs, bias=True)
      self.mel_out = Linear(c.hidden, width, ('mlp', 'embed'), rngs=rngs, bias=True)
    else:
      self.listens = sharding.param(
        rngs, (width,), (None,), normal(1.0), role=sharding.Role.TABLE
      )  # heard, not said
    self.codes = Embedding(codebooks * entries, width, rngs=rngs, std=codebooks**-0.5)

  def hear(
    self, frame_BMS: Shaped[Array, 'B M S'], item_BM: Int[Array, 'B M'], dtype
  ) -> Float[Array, 'B M D']:
    """Returns heard samples at width, by their mel columns."""
    mel_BMX = log_mel_patches(as_wave(frame_BMS), item_BM, self.audio)
    if self.level == Level.CLIP:
      mel_BMX = levelled(mel_BMX, item_BM, self.audio.mels)
    columns = (self.audio.mel_hops, self.audio.mels)
    x_BMCW = mel_BMX.astype(dtype).reshape(*item_BM.shape, *columns)
    for conv in self.convs:
      x_BMCW = conv(x_BMCW, item_BM)
    hidden = jax.nn.gelu(self.mel_in(x_BMCW.reshape(*item_BM.shape, -1)))
    return self.mel_out(hidden)

  def embed_codes(self, code: Int[Array, '*M J'], dtype) -> Float[Array, '*M D']:
    """Returns the sum of the embeddings of a frame's codes."""
    first_J = jnp.arange(self.codebooks) * self.entries
    return self.codes(code.astype(jnp.int32) + first_J, dtype).sum(axis=-2)

  def read(self, stream: Stream, dtype) -> Float[Array, 'B M D']:
    """Returns the heard frames: samples as mel, codes by the table of the model's own speech."""
    if self.hearing == Hearing.MEL:
      return self.hear(stream.value_BM, stream.item_BM, dtype)
    return self.embed_codes(stream.value_BM, dtype) + self.listens[...].astype(dtype)

  def written(self, value, place, dtype) -> Float[Array, '*M D']:
    """Returns spoken frames, given as codes."""
    del place  # time is told by the positions
    return self.embed_codes(value, dtype)
