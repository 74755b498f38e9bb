"""Heard mel frames and the model's own codes to width."""

import dataclasses

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int

from omni_jax.modalities.audio.mel import log_mel_patches
from omni_jax.nn.layers import Embedding, gather_rows, Linear
from omni_jax.types import AudioConfig, Batch


@dataclasses.dataclass(frozen=True)
class AudioEmbedConfig:
  """Attributes: hidden: width of the perceptron between a mel frame and the decoder."""
  hidden: int = 256


class AudioEmbed(nnx.Module):
  """Continuous input (a perceptron on the mel columns of a frame), and sums of code embeddings for own speech."""

  def __init__(self, c: AudioEmbedConfig, audio: AudioConfig, codebooks: int, entries: int, width: int, *,
               rngs: nnx.Rngs):
    self.audio, self.codebooks, self.entries = audio, codebooks, entries
    self.mel_in = Linear(audio.mels * audio.mel_hops, c.hidden, (None, 'mlp'), rngs=rngs, bias=True)
    self.mel_out = Linear(c.hidden, width, ('mlp', 'embed'), rngs=rngs, bias=True)
    self.codes = Embedding(codebooks * entries, width, rngs=rngs, std=codebooks ** -0.5)

  def hear(self, wave_NS: Float[Array, 'N S'], dtype) -> Float[Array, 'N R D']:
    mel_NRX = log_mel_patches(wave_NS, self.audio).astype(dtype)
    return self.mel_out(jax.nn.gelu(self.mel_in(mel_NRX)))

  def embed_codes(self, code: Int[Array, '... J'], dtype) -> Float[Array, '... D']:
    return self.codes(code + jnp.arange(self.codebooks) * self.entries, dtype).sum(axis=-2)

  def __call__(self, batch: Batch, code_BNJ: Int[Array, 'B N J'], dtype) -> Float[Array, 'B L D']:
    """`code_BNJ`: codes of the spoken clips, clips and frames flattened."""
    b, m, s = batch.heard_BMS.shape
    heard = self.hear(batch.heard_BMS.reshape(b * m, s), dtype)
    x_BLD = gather_rows(heard.reshape(b, -1, heard.shape[-1]), batch.heard_BL)
    return x_BLD + gather_rows(self.embed_codes(code_BNJ, dtype), batch.spoken_BL)
