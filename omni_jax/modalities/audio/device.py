"""The row of sounds in the device table, with the speech codec as their autoencoder."""

from typing import Any

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from omni_jax.modalities.audio.codec import Codec, CodecConfig
from omni_jax.modalities.audio.codec_loss import codec_forward
from omni_jax.modalities.audio.embed import (
  AudioEmbed,
  AudioEmbedConfig,
  Hearing,
  mel_inputs,
  TAPS,
)
from omni_jax.modalities.audio.head import CodecHead, CodecHeadConfig
from omni_jax.modalities.audio.mel import as_wave
from omni_jax.modalities.audio.quantizer import (
  CodecBuffers,
  dequantize,
  init_buffers,
  quantize,
  update_buffers,
)
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.device import (
  Autoencoder,
  Device,
  Flops,
  MediumConfigs,
  Size,
  swiglu_weights,
  TrainOutput,
)
from omni_jax.types import RowBudget


def codebooks_of(buffers: dict[str, Any]) -> CodecBuffers:
  """Returns the codebooks among the codec's buffers."""
  return CodecBuffers(**buffers['codebooks'])


def _make(sizes: AudioConfig, config: CodecConfig, rngs: nnx.Rngs) -> Codec:
  return Codec(config, sizes, rngs=rngs)


def _init_buffers(config: CodecConfig) -> dict[str, Any]:
  return {'codebooks': init_buffers(config)._asdict()}


def _loss(
  codec: Codec, buffers: dict[str, Any], crops: tuple[Array, Array], key: Array
) -> tuple[Array, TrainOutput]:
  value_NMY, mask_NM = crops
  wave_NS = value_NMY.reshape(len(value_NMY), -1)
  loss, output = codec_forward(codec, codebooks_of(buffers), wave_NS, mask_NM, key)
  return loss, TrainOutput(output.metrics._asdict(), output.stats)


def _update_buffers(
  config: CodecConfig, buffers: dict[str, Any], stats: Any, key: Array
) -> dict[str, Any]:
  updated = update_buffers(config, codebooks_of(buffers), stats, key)
  return {'codebooks': updated._asdict()}


def encode(
  codec: Codec, buffers: dict[str, Any], frame_BMS: Array, item_BM: Array
) -> Array:
  """Returns the codes of frames in pools: int32 (B, M, J).

  No gradient flows into the codec.

  Args:
    frame_BMS: frames of int16 samples, or of floats in [-1, 1].
    item_BM: number of each frame's clip.
  """
  if not item_BM.size:
    return jnp.zeros((*item_BM.shape, codec.config.codebooks), jnp.int32)
  latent_BMZ = codec.encode_pool(as_wave(frame_BMS), item_BM)
  coded = quantize(latent_BMZ, codebooks_of(buffers), jnp.ones(item_BM.shape))
  return jax.lax.stop_gradient(coded.code_NRJ)


def _decode(codec: Codec, buffers: dict[str, Any], code_NMJ: Array) -> Array:
  latent_NMZ = dequantize(code_NMJ, codebooks_of(buffers))
  wave_NS = codec.decode(latent_NMZ)
  return wave_NS.reshape(*code_NMJ.shape[:2], -1)


def _identity(sizes: AudioConfig, config: CodecConfig) -> str:
  del config  # the names and shapes of the weights identify it
  return f'{sizes.rate} {sizes.mels} {sizes.mel_hops} {sizes.mel_window}'


def _read_buffers(buffers: dict[str, Any]) -> Any:
  return buffers['codebooks']['codebook_JEZ']


def _codes(sizes: AudioConfig, config: CodecConfig) -> tuple[tuple[int, ...], int]:
  del sizes
  return (config.codebooks,), config.entries


CODEC = Autoencoder(
  name='codec',
  config=CodecConfig,
  make=_make,
  init_buffers=_init_buffers,
  loss=_loss,
  update_buffers=_update_buffers,
  encode=encode,
  decode=_decode,
  identity=_identity,
  read_buffers=_read_buffers,
  codes=_codes,
)


def _embed(parts: MediumConfigs, rngs: nnx.Rngs) -> AudioEmbed:
  codec = parts.autoencoder
  return AudioEmbed(
    parts.embed,
    parts.sizes,
    codebooks=codec.codebooks,
    entries=codec.entries,
    width=parts.width,
    rngs=rngs,
  )


def _head(parts: MediumConfigs, rngs: nnx.Rngs) -> CodecHead:
  codec = parts.autoencoder
  return CodecHead(parts.head, codec.codebooks, codec.entries, parts.width, rngs=rngs)


def _coded(parts: MediumConfigs) -> tuple[str, ...]:
  if parts.embed.hearing == Hearing.CODES:
    return ('spoken', 'heard')
  return ('spoken',)


def _sizes(parts: MediumConfigs) -> list[Size]:
  head = parts.head
  sizes: list[Size] = []
  if parts.embed.hearing == Hearing.MEL:
    sizes.append(('config.model.audio.embed.hidden', parts.embed.hidden, 'mlp'))
  sizes.append(('config.model.audio.head.width', head.width, 'expert_embed'))
  sizes.append(('config.model.audio.head.heads', head.heads, 'heads'))
  sizes.append(('config.model.audio.head.hidden', head.hidden, 'mlp'))
  # The width again, for the projection from the decoder; the entries, for the logits.
  sizes.append(('config.model.audio.head.width', head.width, 'mlp'))
  sizes.append(('config.model.codec.entries', parts.autoencoder.entries, 'mlp'))
  return sizes


def _flops(parts: MediumConfigs, budget: RowBudget) -> Flops:
  heard, _ = budget.room('audio.heard')
  spoken, _ = budget.room('audio.spoken')
  audio = parts.sizes
  embed = parts.embed
  depth = parts.head
  codec = parts.autoencoder
  hears_codes = embed.hearing == Hearing.CODES
  # Two convolutions, if there are any: over all columns, then over half of them.
  columns = audio.mel_hops
  frame = TAPS * embed.channels * (columns * audio.mels + columns // 2 * embed.channels)
  frame += embed.hidden * (mel_inputs(embed, audio) + parts.width)
  read = 0 if hears_codes else heard * frame

  per_layer = 4 * depth.width**2 + swiglu_weights(depth.width, depth.hidden)
  per_layer += 2 * depth.width * codec.codebooks
  code = depth.layers * per_layer + depth.width * codec.entries
  head = spoken * (codec.codebooks * code + parts.width * depth.width)

  values = (2 * audio.frame + audio.mel_values) // codec.subframes
  patch = values * codec.width
  per_layer = 4 * codec.width**2 + swiglu_weights(codec.width, codec.hidden)
  patch += codec.layers * per_layer
  patch += codec.width * codec.latent
  coded = spoken + heard if hears_codes else spoken
  pools = 2.0 * budget.pools
  return Flops(pools * read, pools * head, pools * coded * codec.subframes * patch)


AUDIO = Device(
  _embed,
  _head,
  AudioEmbedConfig,
  CodecHeadConfig,
  autoencoder=CODEC,
  coded=_coded,
  sizes=_sizes,
  flops=_flops,
)
