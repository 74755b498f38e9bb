"""OmniModel: embed -> decoder -> heads, and the device table of modalities."""

import dataclasses
from typing import Any, NamedTuple

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from omni_jax import sharding
from omni_jax.config import dataclass_of, media_of
from omni_jax.errors import UserError
from omni_jax.modalities.audio.codec import Codec, CodecConfig
from omni_jax.modalities.audio.embed import AudioEmbed, AudioEmbedConfig, Hearing
from omni_jax.modalities.audio.head import CodecHead, CodecHeadConfig
from omni_jax.modalities.audio.quantizer import quantize
from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.modalities.image.embed import ImageEmbed, ImageEmbedConfig
from omni_jax.modalities.image.flow import noise_images, Noised
from omni_jax.modalities.image.head import Denoiser, DiTConfig, DiTHead
from omni_jax.modalities.image.noise_in_decoder import open_blocks, PatchHead
from omni_jax.modalities.text.embed import TextEmbed
from omni_jax.modalities.text.head import TextHead
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.nn.decoder import Decoded, Decoder, DecoderConfig
from omni_jax.types import Batch, MediaConfig

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class OmniConfig:
  """Everything that fixes the shapes of the network."""

  media: MediaConfig = MediaConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  decoder: DecoderConfig = DecoderConfig()
  image_embed: ImageEmbedConfig = ImageEmbedConfig()
  audio_embed: AudioEmbedConfig = AudioEmbedConfig()
  dit: DiTConfig = DiTConfig()
  codec_head: CodecHeadConfig = CodecHeadConfig()
  codec: CodecConfig = CodecConfig()
  dtype: str = 'float32'  # of the computation
  weights: str = 'float32'  # of what is trained and of its moments; half the memory, but small updates are lost

  @classmethod
  def from_config(cls, config: Any) -> 'OmniConfig':
    """From the `model` part of a run's ConfigDict.

    Raises:
      UserError: for a name or a value that a part does not take.
    """
    known = {f.name for f in dataclasses.fields(cls)} - {'media'} | {'image', 'audio'}
    if unknown := sorted(set(config) - known):
      raise UserError(
        f'config.model: {unknown} is unknown; its parts are {sorted(known)}'
      )
    types = {name: config.get(name, 'float32') for name in ('dtype', 'weights')}
    for name, value in types.items():
      if value not in DTYPES:
        raise UserError(
          f'config.model.{name}={value!r} is unknown; it is one of {DTYPES}'
        )
    parts = {
      f.name: type(f.default)
      for f in dataclasses.fields(cls)
      if f.name not in ('media', *types)
    }
    return cls(
      media=media_of(config),
      **types,
      **{
        name: dataclass_of(kind, config[name], f'model.{name}')
        for name, kind in parts.items()
        if name in config
      },
    )


def main_sizes(c: OmniConfig) -> list[tuple[str, int, str]]:
  """(config key, size, logical axis) of the dimensions that a mesh has to divide; small tables and biases stay whole.

  Heads rather than the columns of their projections: half a head on a device would be exchanged in every layer; those
  of keys are repeated where there are too few. The vocabulary is not among them: it is what the tokenizer makes it.
  """
  d, found = c.decoder, []

  def add(part: str, **axes: str) -> None:
    for name, axis in axes.items():
      found.append(
        (f'config.model.{part}.{name}', getattr(getattr(c, part), name), axis)
      )

  add(
    'decoder',
    width='expert_embed',
    heads='heads',
    experts='expert',
    expert_hidden='mlp',
  )
  if d.shared_hidden:
    add('decoder', shared_hidden='mlp')
  if c.image_embed.layers:
    add('image_embed', heads='heads', hidden='mlp')
  if c.audio_embed.hearing == Hearing.MEL:
    add('audio_embed', hidden='mlp')
  if c.dit.denoiser == Denoiser.DIT:
    add('dit', width='expert_embed', heads='heads', hidden='mlp')
    add('dit', width='mlp')  # of the projections that modulate the blocks
  add('codec_head', width='expert_embed', heads='heads', hidden='mlp')
  add('codec_head', width='mlp')  # of the projection from the decoder
  add('codec', entries='mlp')  # of the codec head's logits
  return found


class Encoded(NamedTuple):
  """What a step makes of a batch's media before the model sees them."""

  code_BRJ: Array  # codes of the spoken frames
  heard_code_BRJ: Array | None = (
    None  # of the heard frames, in a model that hears codes
  )
  noised: Noised | None = None  # the drawn images, where a loss is asked for


class OmniModel(nnx.Module):
  """One causal decoder, an embedding per kind of payload, a head per modality."""

  def __init__(self, c: OmniConfig, *, rngs: nnx.Rngs):
    self.config = c
    vocab, width = Tokenizer(c.tokenizer).vocab_size, c.decoder.width
    codebooks, entries = c.codec.codebooks, c.codec.entries
    self.text_embed = TextEmbed(vocab, width, rngs=rngs)
    self.image_embed = ImageEmbed(c.image_embed, c.media.image, width, rngs=rngs)
    self.audio_embed = AudioEmbed(
      c.audio_embed, c.media.audio, codebooks, entries, width, rngs=rngs
    )
    self.decoder = Decoder(c.decoder, rngs=rngs)
    self.heads = nnx.Dict(
      {
        'text': TextHead(width, vocab, rngs=rngs),
        'image': (PatchHead if self.sees_noise else DiTHead)(
          c.dit, c.media.image, width, rngs=rngs
        ),
        'audio': CodecHead(c.codec_head, codebooks, entries, width, rngs=rngs),
      }
    )

  @property
  def sees_noise(self) -> bool:
    return self.config.dit.denoiser == Denoiser.DECODER

  def open_blocks(self, batch: Batch) -> Int[Array, 'B L'] | None:
    """What of the rows is not causal: nothing, except in the baseline whose decoder draws."""
    return open_blocks(batch) if self.sees_noise else None

  def embed(self, batch: Batch, encoded: Encoded) -> Float[Array, 'B L D']:
    """The sum of the payloads present at each position."""
    dtype = jnp.dtype(self.config.dtype)
    x_BLD = self.text_embed(batch, dtype) + self.image_embed(batch, dtype)
    x_BLD = x_BLD + self.audio_embed(
      batch, encoded.code_BRJ, encoded.heard_code_BRJ, dtype
    )
    if self.sees_noise:
      x_BLD = self.heads['image'].embed(x_BLD, batch, encoded.noised)
    return sharding.shard(x_BLD, 'batch', 'length', 'act_embed')

  def __call__(
    self, batch: Batch, encoded: Encoded, bias_IE: Float[Array, 'I E'], mesh: Mesh
  ) -> Decoded:
    return self.decoder(
      self.embed(batch, encoded),
      batch.segment_BL,
      batch.modality_BL,
      batch.position_BL3,
      bias_IE,
      mesh,
      self.open_blocks(batch),
    )

  def losses(
    self, hidden_BLD: Float[Array, 'B L D'], batch: Batch, encoded: Encoded, mesh: Mesh
  ) -> dict[str, HeadLoss]:
    """Loss of every head."""
    return {
      'text': self.heads['text'].loss(
        hidden_BLD, batch.target_BL, batch.weight_BL, mesh
      ),
      'image': self.heads['image'].loss(hidden_BLD, encoded.noised, batch.draw_at_BNP),
      'audio': self.heads['audio'].loss(
        hidden_BLD, batch.speak_at_BR, encoded.code_BRJ
      ),
    }


def codes_of(
  codec: Codec,
  codebooks: Any,
  frame_BRS: Float[Array, 'B R S'],
  clip_BR: Int[Array, 'B R'],
) -> Int[Array, 'B R J']:
  """Codes of the clips of a row, one behind the other, from the frozen codec; no gradient flows into it."""
  if not clip_BR.size:
    return jnp.zeros((*clip_BR.shape, codec.config.codebooks), jnp.int32)
  latent_BRZ = codec.encode_pool(frame_BRS, clip_BR)
  return jax.lax.stop_gradient(
    quantize(latent_BRZ, codebooks, jnp.ones(clip_BR.shape)).code_NRJ
  )


def encode_media(
  config: OmniConfig,
  codec: Codec,
  codebooks: Any,
  batch: Batch,
  key: Array | None = None,
) -> Encoded:
  """Codes of what is spoken, and of what is heard if the model hears codes, as far as the batch does not carry them;
  with the step's key, noise for the images that are drawn."""
  hears_codes = config.audio_embed.hearing == Hearing.CODES
  noised = None
  if key is not None:
    noised = noise_images(
      batch.drawn_BNhwc,
      batch.draw_key_BN,
      key,
      config.media.image,
      samples=config.dit.noises,
      shift=config.dit.shift,
    )
  codes = lambda code_BRJ, *pool: (
    code_BRJ if code_BRJ.shape[-1] else codes_of(codec, codebooks, *pool)
  )
  return Encoded(
    codes(batch.spoken_code_BRJ, batch.spoken_BRS, batch.spoken_clip_BR),
    codes(batch.heard_code_BRJ, batch.heard_BRS, batch.heard_clip_BR)
    if hears_codes
    else None,
    noised,
  )


def abstract(config: OmniConfig) -> OmniModel:
  """The model with shapes in place of arrays: nothing is computed."""
  return nnx.eval_shape(lambda: OmniModel(config, rngs=nnx.Rngs(0)))


def merge(model: nnx.Module, params: dict[str, Any]) -> Any:
  """An abstract model with the arrays of a pure dict in the place of its shapes."""
  graph, state = nnx.split(model)
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(graph, state)
