"""Heard mel frames (or codes) and the model's own codes to width."""

import dataclasses
import enum

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int

from omni_jax import sharding
from omni_jax.modalities.audio.mel import log_mel_patches
from omni_jax.nn.layers import Embedding, gather_rows, Linear, normal
from omni_jax.types import AudioConfig, Batch


class Hearing(enum.StrEnum):
  MEL = 'mel'  # continuous
  CODES = 'codes'  # discrete: what the speech codec makes of the clip, by the same table as the model's own speech


@dataclasses.dataclass(frozen=True)
class AudioEmbedConfig:
  """Attributes: hearing: see Hearing. hidden: width of the perceptron between a mel frame and the decoder."""
  hearing: Hearing | str = Hearing.MEL
  hidden: int = 256

  def __post_init__(self):
    object.__setattr__(self, 'hearing', Hearing(self.hearing))


class AudioEmbed(nnx.Module):
  """Continuous input (a perceptron on the mel columns of a frame), and sums of code embeddings for own speech."""

  def __init__(self, c: AudioEmbedConfig, audio: AudioConfig, codebooks: int, entries: int, width: int, *,
               rngs: nnx.Rngs):
    self.audio, self.codebooks, self.entries = audio, codebooks, entries
    if c.hearing == Hearing.MEL:
      self.mel_in = Linear(audio.mels * audio.mel_hops, c.hidden, (None, 'mlp'), rngs=rngs, bias=True)
      self.mel_out = Linear(c.hidden, width, ('mlp', 'embed'), rngs=rngs, bias=True)
    else:
      self.listens = sharding.param(rngs, (width,), (None,), normal(1.0))  # heard, not said
    self.codes = Embedding(codebooks * entries, width, rngs=rngs, std=codebooks ** -0.5)

  def hear(self, frame_BRS: Float[Array, 'B R S'], clip_BR: Int[Array, 'B R'], dtype) -> Float[Array, 'B R D']:
    mel_BRX = log_mel_patches(frame_BRS, clip_BR, self.audio).astype(dtype)
    return self.mel_out(jax.nn.gelu(self.mel_in(mel_BRX)))

  def embed_codes(self, code: Int[Array, '... J'], dtype) -> Float[Array, '... D']:
    return self.codes(code + jnp.arange(self.codebooks) * self.entries, dtype).sum(axis=-2)

  def __call__(self, batch: Batch, code_BRJ: Int[Array, 'B spoken J'], heard_code_BRJ: Int[Array, 'B heard J'] | None,
               dtype) -> Float[Array, 'B L D']:
    """`code_BRJ`, `heard_code_BRJ`: codes of the frames that are spoken and heard; None: mel is heard."""
    if heard_code_BRJ is None:
      heard_BRD = self.hear(batch.heard_BRS, batch.heard_clip_BR, dtype)
    else:
      heard_BRD = self.embed_codes(heard_code_BRJ, dtype) + self.listens[...].astype(dtype)
    return gather_rows(heard_BRD, batch.heard_BL) + gather_rows(self.embed_codes(code_BRJ, dtype), batch.spoken_BL)
