"""The embedding of sounds: heard frames, as mel or as codes, and the model's speech."""

import dataclasses
import enum

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Shaped

from omni_jax import sharding
from omni_jax.errors import UserError
from omni_jax.modalities.audio.mel import as_wave, levelled, log_mel_patches, with_past
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.nn.layers import Embedding, Linear, normal
from omni_jax.types import Stream

TAPS = 3  # columns that a convolution sees


class Hearing(enum.StrEnum):
  """The form in which the model hears sounds.

  MEL is continuous. CODES are the discrete codes of the speech codec, embedded by the
  same table as the model's own speech.
  """

  MEL = 'mel'
  CODES = 'codes'


class Level(enum.StrEnum):
  """The reference for the loudness of a mel band.

  FIXED leaves it as recorded. CLIP subtracts the mean of the clip, which needs the
  whole clip, so that speech cannot be answered while it goes on.
  """

  FIXED = 'fixed'
  CLIP = 'clip'


@dataclasses.dataclass(frozen=True)
class AudioEmbedConfig:
  """Ways to embed heard sounds.

  Attributes:
    hearing: see Hearing.
    level: see Level.
    channels: channels of the two causal convolutions over mel columns that precede a
      frame's perceptron; 0 for no convolutions.
    hidden: hidden width of the perceptron between a frame and the decoder.
  """

  hearing: Hearing | str
  level: Level | str
  channels: int
  hidden: int

  def __post_init__(self):
    object.__setattr__(self, 'hearing', Hearing(self.hearing))
    object.__setattr__(self, 'level', Level(self.level))


def mel_inputs(embed: AudioEmbedConfig, audio: AudioConfig) -> int:
  """Returns how many values of a frame the perceptron of heard sounds reads."""
  if embed.channels:  # the convolutions halve the columns twice
    return audio.mel_hops // 4 * embed.channels
  return audio.mel_values


class CausalConv(nnx.Module):
  """A causal convolution over three columns of a clip, then max-pooling by two."""

  def __init__(self, d_in: int, d_out: int, *, rngs: nnx.Rngs):
    self.mix = Linear(TAPS * d_in, d_out, (None, 'mlp'), rngs=rngs, bias=True)

  def __call__(
    self, x_NRCW: Float[Array, 'N R C W'], clip_NR: Int[Array, 'N R']
  ) -> Float[Array, 'N R half V']:
    n, r, columns, width = x_NRCW.shape
    frame_NRX = x_NRCW.reshape(n, r, -1)
    past_NRX = with_past(frame_NRX, clip_NR, (TAPS - 1) * width)
    past_NRCW = past_NRX.reshape(n, r, -1, width)
    taps = [past_NRCW[:, :, k : k + columns] for k in range(TAPS)]
    y = jax.nn.gelu(self.mix(jnp.concatenate(taps, axis=-1)))
    return y.reshape(n, r, columns // 2, 2, -1).max(axis=3)


class AudioEmbed(nnx.Module):
  """A perceptron on a frame's mel columns, and a sum of embeddings of a frame's codes.

  Args:
    c: config of the embedding.
    audio: sizes of sounds.
    codebooks: number of codebooks of the speech codec.
    entries: number of entries of a codebook.
    width: width of the decoder.

  Raises:
    UserError: if the convolutions cannot halve the mel columns of a frame twice.
  """

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
    self.audio = audio
    self.codebooks = codebooks
    self.entries = entries
    self.level = c.level
    self.hearing = c.hearing
    if c.hearing == Hearing.MEL:
      self.convs = nnx.List(_convolutions(c, audio, rngs))
      values = mel_inputs(c, audio)
      self.mel_in = Linear(values, c.hidden, (None, 'mlp'), rngs=rngs, bias=True)
      self.mel_out = Linear(c.hidden, width, ('mlp', 'embed'), rngs=rngs, bias=True)
    else:
      # Tells heard codes from the model's own.
      self.listens = sharding.param(
        rngs, (width,), (None,), normal(1.0), role=sharding.Role.TABLE
      )
    self.codes = Embedding(codebooks * entries, width, rngs=rngs, std=codebooks**-0.5)

  def hear(
    self,
    frame_BMS: Shaped[Array, 'B M S'],
    item_BM: Int[Array, 'B M'],
    dtype: DTypeLike,
  ) -> Float[Array, 'B M D']:
    """Returns the embeddings of heard frames of samples, by their mel columns."""
    mel_BMX = log_mel_patches(as_wave(frame_BMS), item_BM, self.audio)
    if self.level == Level.CLIP:
      mel_BMX = levelled(mel_BMX, item_BM, self.audio.mels)
    columns = (self.audio.mel_hops, self.audio.mels)
    x_BMCW = mel_BMX.astype(dtype).reshape(*item_BM.shape, *columns)
    for conv in self.convs:
      x_BMCW = conv(x_BMCW, item_BM)
    hidden = jax.nn.gelu(self.mel_in(x_BMCW.reshape(*item_BM.shape, -1)))
    return self.mel_out(hidden)

  def embed_codes(
    self, code: Int[Array, '*M J'], dtype: DTypeLike
  ) -> Float[Array, '*M D']:
    """Returns the sum of the embeddings of each frame's codes."""
    first_J = jnp.arange(self.codebooks) * self.entries
    return self.codes(code.astype(jnp.int32) + first_J, dtype).sum(axis=-2)

  def read(self, stream: Stream, dtype: DTypeLike) -> Float[Array, 'B M D']:
    """Returns the embeddings of heard frames, which are samples or codes."""
    if self.hearing == Hearing.MEL:
      return self.hear(stream.value_BM, stream.item_BM, dtype)
    return self.embed_codes(stream.value_BM, dtype) + self.listens[...].astype(dtype)

  def written(
    self, value: Int[Array, '*M J'], place: Int[Array, '*M 3'], dtype: DTypeLike
  ) -> Float[Array, '*M D']:
    """Returns the embeddings of spoken frames, which are codes."""
    del place  # the positions carry the time
    return self.embed_codes(value, dtype)


def _convolutions(
  c: AudioEmbedConfig, audio: AudioConfig, rngs: nnx.Rngs
) -> list[CausalConv]:
  """Returns the two convolutions over mel columns, or none."""
  if not c.channels:
    return []
  if audio.mel_hops % 4:
    raise UserError(
      f'config.model.audio.embed.channels={c.channels} halves the {audio.mel_hops} mel '
      'columns of a frame twice; set config.model.audio.mel_hops to a multiple of 4, '
      'or channels=0'
    )
  first = CausalConv(audio.mels, c.channels, rngs=rngs)
  second = CausalConv(c.channels, c.channels, rngs=rngs)
  return [first, second]
