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

  def hear(self, wave_NS: Float[Array, 'N S'], dtype) -> Float[Array, 'N R D']:
    mel_NRX = log_mel_patches(wave_NS, self.audio).astype(dtype)
    return self.mel_out(jax.nn.gelu(self.mel_in(mel_NRX)))

  def embed_codes(self, code: Int[Array, '... J'], dtype) -> Float[Array, '... D']:
    return self.codes(code + jnp.arange(self.codebooks) * self.entries, dtype).sum(axis=-2)

  def __call__(self, batch: Batch, code_BNJ: Int[Array, 'B N J'], heard_code_BNJ: Int[Array, 'B N J'] | None, dtype
               ) -> Float[Array, 'B L D']:
    """`code_BNJ`, `heard_code_BNJ`: codes of the clips, clips and frames flattened; None: mel is heard."""
    if heard_code_BNJ is None:
      b, m, s = batch.heard_BMS.shape
      heard = self.hear(batch.heard_BMS.reshape(b * m, s), dtype).reshape(b, -1, self.codes.table.shape[-1])
    else:
      heard = self.embed_codes(heard_code_BNJ, dtype) + self.listens[...].astype(dtype)
    return gather_rows(heard, batch.heard_BL) + gather_rows(self.embed_codes(code_BNJ, dtype), batch.spoken_BL)
