"""A causal, streaming neural audio codec of matmuls, at 12.5 latent frames per second.

A frame is cut into `subframes` patches, windowed-attention layers run over the patches,
and the patches of a frame are merged into one latent, which `quantizer.py` codes. The
decoder mirrors this. Nothing looks ahead, so a whole clip and any split of it into
chunks of whole frames give the same latents. Nothing looks into another clip either, so
clips that follow each other in a row give the same latents as each alone.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int

from omni_jax import sharding
from omni_jax.modalities.audio.mel import log_mel_patches, synthesis_matrix, with_past
from omni_jax.modalities.audio.quantizer import QuantizerConfig
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.nn.blocks import scan_blocks
from omni_jax.nn.layers import Linear, rms_norm, RMSNorm, SwiGLU, zeros
from omni_jax.sharding import Role

SPEECH_RMS = 0.1  # of usual speech: the scale of the untrained decoder's output
INPUT_GAIN = 10  # brings the samples of usual speech to about 1
MAX_LOG_MAGNITUDE = 6.0  # of a spectrum, so that no sample overflows
MASKED = -1e30  # score of a key that a query does not see
uniform = nnx.initializers.uniform


@dataclasses.dataclass(frozen=True)
class CodecConfig(QuantizerConfig):
  """Sizes and training of the codec; those of the quantizer are inherited.

  Attributes:
    width: width of a patch inside encoder and decoder (D).
    layers: number of layers of the encoder, and again of the decoder.
    hops: number of spectra that the decoder turns a patch into.
    heads: attention heads of a layer.
    hidden: hidden width of a layer's SwiGLU.
    window: number of patches that a patch attends to, itself included.
    subframes: number of patches in a frame.
    commitment: weight of the quantizer's commitment in the loss.
    waveform: weight of the L1 distance of samples in the loss. At 800 bit/s the phase
      cannot be coded, and this term only smears the sound.
    dropout: share of training clips that keep only their first few codebooks.
    unquantized: share of training clips that reach the decoder without quantization
      (Moshi, Défossez et al. 2024).
  """

  width: int
  layers: int
  hops: int
  heads: int
  hidden: int
  window: int
  subframes: int
  commitment: float
  waveform: float
  dropout: float
  unquantized: float


class LayerCache(NamedTuple):
  """The past that a layer attends to: its last window - 1 patches.

  Attributes:
    key_NLHA: attention keys.
    value_NLHA: attention values.
    clip_NL: number of each patch's clip; 0 before the start of a stream.
  """

  key_NLHA: Array
  value_NLHA: Array
  clip_NL: Array


def near_attention(
  q_NLHA: Float[Array, 'N L H A'],
  clip_NL: Int[Array, 'N L'],
  keys: LayerCache,
  bias_HW: Float[Array, 'H W'],
) -> Float[Array, 'N L H A']:
  """Returns attention to the last W keys of each query's clip, with all logits at once.

  A query's own key is one of the W. Each distance has a bias.

  Args:
    clip_NL: number of each query's clip.
    keys: keys of the past, followed by those of the queries.
    bias_HW: bias of each distance, 0…W-1.
  """
  l = q_NLHA.shape[1]
  s = keys.clip_NL.shape[1]
  distance = jnp.arange(l)[:, None] + s - l - jnp.arange(s)[None]
  window = bias_HW.shape[1]
  near = (distance >= 0) & (distance < window)
  same = clip_NL[:, :, None] == keys.clip_NL[:, None]
  bias = bias_HW[:, jnp.clip(distance, 0, window - 1)]
  scale = q_NLHA.shape[-1] ** -0.5
  score = jnp.einsum('nqha,nkha->nhqk', q_NLHA, keys.key_NLHA) * scale + bias[None]
  visible = near[None] & same
  score = jnp.where(visible[:, None], score, MASKED)
  return jnp.einsum('nhqk,nkha->nqha', jax.nn.softmax(score), keys.value_NLHA)


def chunked_attention(
  q_NLHA: Float[Array, 'N L H A'],
  clip_NL: Int[Array, 'N L'],
  keys: LayerCache,
  bias_HW: Float[Array, 'H W'],
) -> Float[Array, 'N L H A']:
  """Returns the same as `near_attention`, with L · 2W logits instead of L · S.

  A chunk of W queries attends to its own chunk of keys and to the one before it.
  """
  n, l, *head = q_NLHA.shape
  window = bias_HW.shape[1]
  past = keys.clip_NL.shape[1] - l
  chunks = -(-l // window)
  missing = chunks * window - l

  def queries(a: Array) -> Array:
    ends = [(0, 0), (0, missing)] + [(0, 0)] * (a.ndim - 2)
    padded = jnp.pad(a, ends)
    return padded.reshape(n * chunks, window, *a.shape[2:])

  def pairs(a: Array) -> Array:
    # Padding gets clip -1, which no query has.
    ends = [(0, 0), (window - past, missing)] + [(0, 0)] * (a.ndim - 2)
    padded = jnp.pad(a, ends, constant_values=-1)
    chunk = padded.reshape(n, chunks + 1, window, *a.shape[2:])
    pair = jnp.concatenate([chunk[:, :-1], chunk[:, 1:]], axis=2)
    return pair.reshape(n * chunks, 2 * window, *a.shape[2:])

  near = LayerCache(
    key_NLHA=pairs(keys.key_NLHA),
    value_NLHA=pairs(keys.value_NLHA),
    clip_NL=pairs(keys.clip_NL),
  )
  y = near_attention(queries(q_NLHA), queries(clip_NL), near, bias_HW)
  return y.reshape(n, chunks * window, *head)[:, :l]


class StreamCache(NamedTuple):
  """The state of the encoder or of the decoder between two chunks.

  Attributes:
    past_NS: last frame that the encoder heard.
    tail_NS: samples of the decoder's last hop that overlap with the next one.
    layers: pasts of the layers, stacked on a leading axis.
  """

  past_NS: Array
  tail_NS: Array
  layers: LayerCache


class Layer(nnx.Module):
  """Pre-norm attention to the clip's last `window` patches, then a SwiGLU.

  Attention has a learned bias per distance.
  """

  def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
    assert config.width % config.heads == 0, (config.width, config.heads)
    self.heads = config.heads
    self.window = config.window
    self.norm = RMSNorm(config.width, rngs=rngs)
    self.qkv = Linear(config.width, 3 * config.width, ('embed', 'heads'), rngs=rngs)
    self.out = Linear(config.width, config.width, ('heads', 'embed'), rngs=rngs)
    self.bias_HW = sharding.param(
      rngs, (config.heads, config.window), (None, None), zeros, Role.TABLE
    )
    self.mlp_norm = RMSNorm(config.width, rngs=rngs)
    self.mlp = SwiGLU(config.width, config.hidden, rngs=rngs)

  def __call__(
    self, x_NLD: Float[Array, 'N L D'], clip_NL: Int[Array, 'N L'], cache: LayerCache
  ) -> tuple[Float[Array, 'N L D'], LayerCache]:
    """Returns the patches after this layer, and its new past."""
    n, l, d = x_NLD.shape
    qkv = self.qkv(self.norm(x_NLD)).reshape(n, l, 3 * self.heads, d // self.heads)
    q, k, v = jnp.split(qkv, 3, axis=2)
    keys = LayerCache(
      key_NLHA=jnp.concatenate([cache.key_NLHA, k], axis=1),
      value_NLHA=jnp.concatenate([cache.value_NLHA, v], axis=1),
      clip_NL=jnp.concatenate([cache.clip_NL, clip_NL], axis=1),
    )
    attend = near_attention if l <= 2 * self.window else chunked_attention
    y_NLHA = attend(q, clip_NL, keys, self.bias_HW[...])
    x_NLD = x_NLD + self.out(y_NLHA.reshape(n, l, d))
    first = max(0, keys.clip_NL.shape[1] - (self.window - 1))
    cache = LayerCache(
      key_NLHA=keys.key_NLHA[:, first:],
      value_NLHA=keys.value_NLHA[:, first:],
      clip_NL=keys.clip_NL[:, first:],
    )
    return x_NLD + self.mlp(self.mlp_norm(x_NLD)), cache


class Codec(nnx.Module):
  """Encodes waves into latent frames and decodes latent frames into waves.

  The codes lie between the two: see `quantizer.quantize` and `quantizer.dequantize`.
  """

  def __init__(self, config: CodecConfig, audio: AudioConfig, *, rngs: nnx.Rngs):
    assert audio.frame % config.subframes == 0, (audio, config.subframes)
    assert audio.mel_hops % config.subframes == 0, (audio, config.subframes)
    assert audio.mel_window <= audio.frame, (audio.mel_window, audio.frame)
    self.config = config
    self.audio = audio
    self.patch = audio.frame // config.subframes
    mel = audio.mel_values // config.subframes
    self.embed = Linear(2 * self.patch + mel, config.width, (None, 'embed'), rngs=rngs)
    self.encoder = nnx.List([Layer(config, rngs=rngs) for _ in range(config.layers)])
    self.merge_norm = RMSNorm(config.width, rngs=rngs)
    self.merge = Linear(
      config.subframes * config.width, config.latent, ('embed', None), rngs=rngs
    )
    self.split = Linear(
      config.latent, config.subframes * config.width, (None, 'embed'), rngs=rngs
    )
    self.decoder = nnx.List([Layer(config, rngs=rngs) for _ in range(config.layers)])
    self.head_norm = RMSNorm(config.width, rngs=rngs)
    self.hop = self.patch // config.hops
    self.ramp = self.hop // 2
    self.bins = (self.hop + self.ramp) // 2 + 1
    self.head = Linear(
      config.width, config.hops * 2 * self.bins, ('embed', None), rngs=rngs
    )
    self.phase = sharding.param(
      rngs, (config.hops, self.bins), (None, None), uniform(2 * math.pi), Role.TABLE
    )

  def encode(self, wave_NS: Float[Array, 'N S']) -> Float[Array, 'N R Z']:
    """Returns the latents of clips of whole frames, one clip per row.

    Args:
      wave_NS: samples in [-1, 1].
    """
    _, latent_NRZ = self.encode_stream(self._start(wave_NS.shape[0], 0), wave_NS)
    return latent_NRZ

  def encode_pool(
    self, frame_NRS: Float[Array, 'N R S'], clip_NR: Int[Array, 'N R']
  ) -> Float[Array, 'N R Z']:
    """Returns the latents of frames of several clips per row.

    Args:
      frame_NRS: frames of samples in [-1, 1].
      clip_NR: number of each frame's clip.
    """
    start = self._start(frame_NRS.shape[0], 0)
    _, latent_NRZ = self._encode(start, frame_NRS, clip_NR)
    return latent_NRZ

  def decode(self, latent_NRZ: Float[Array, 'N R Z']) -> Float[Array, 'N S']:
    """Returns the samples of clips, one clip per row."""
    start = self._start(latent_NRZ.shape[0], 0)
    _, wave_NS = self.decode_stream(start, latent_NRZ)
    return wave_NS

  def init_cache(self, n: int) -> StreamCache:
    """Returns the state of `encode_stream` or `decode_stream` at the start of n clips.

    Each of the two needs a state of its own.
    """
    return self._start(n, self.config.window - 1)

  def _start(self, n: int, past: int) -> StreamCache:
    """Returns the state at the start of n clips, with `past` empty patches in it."""
    head = self.config.width // self.config.heads
    layers = self.config.layers
    key = jnp.zeros((layers, n, past, self.config.heads, head))
    clip = jnp.zeros((layers, n, past), jnp.int32)
    return StreamCache(
      past_NS=jnp.zeros((n, self.audio.frame)),
      tail_NS=jnp.zeros((n, self.ramp)),
      layers=LayerCache(key, key, clip),
    )

  def encode_stream(
    self, cache: StreamCache, wave_NS: Float[Array, 'N S']
  ) -> tuple[StreamCache, Float[Array, 'N R Z']]:
    """Returns the new state and the latents of the next frames, one clip per row.

    Args:
      wave_NS: samples in [-1, 1], whole frames.
    """
    n, samples = wave_NS.shape
    frame = self.audio.frame
    assert samples % frame == 0, (samples, frame)
    frame_NRS = wave_NS.reshape(n, samples // frame, frame)
    clip_NR = jnp.ones(frame_NRS.shape[:2], jnp.int32)
    return self._encode(cache, frame_NRS, clip_NR)

  def _encode(
    self, cache: StreamCache, frame_NRS: Array, clip_NR: Array
  ) -> tuple[StreamCache, Array]:
    n, r, _ = frame_NRS.shape
    subframes = self.config.subframes
    heard_NRS = jnp.concatenate([cache.past_NS[:, None], frame_NRS], axis=1)
    heard_NR = jnp.concatenate([clip_NR[:, :1], clip_NR], axis=1)
    mel_NRX = log_mel_patches(heard_NRS, heard_NR, self.audio)[:, 1:]
    with_past_NRS = with_past(heard_NRS, heard_NR, self.patch)[:, 1:]
    patch_NRLS = with_past_NRS.reshape(n, r, -1, self.patch)
    # Loudness spans decades: the samples mainly carry the phase, and the mel columns
    # the rest.
    previous_NRLS = INPUT_GAIN * patch_NRLS[:, :, :-1]
    current_NRLS = INPUT_GAIN * patch_NRLS[:, :, 1:]
    mel_NRLX = mel_NRX.reshape(n, r, subframes, -1)
    x_NRLX = jnp.concatenate([previous_NRLS, current_NRLS, mel_NRLX], axis=-1)
    x_NLD = self.embed(x_NRLX.reshape(n, r * subframes, -1))
    x_NLD, layers = self._run(self.encoder, x_NLD, clip_NR, cache.layers)
    # Latents have a fixed size; otherwise the commitment would shrink them and the last
    # codebooks would go unused.
    patches_NRX = self.merge_norm(x_NLD).reshape(n, r, -1)
    latent_NRZ = rms_norm(self.merge(patches_NRX))
    return StreamCache(heard_NRS[:, -1], cache.tail_NS, layers), latent_NRZ

  def decode_stream(
    self, cache: StreamCache, latent_NRZ: Float[Array, 'N R Z']
  ) -> tuple[StreamCache, Float[Array, 'N S']]:
    """Returns the new state and the samples of the next frames, one clip per row."""
    n, r, _ = latent_NRZ.shape
    patches = r * self.config.subframes
    x_NLD = self.split(latent_NRZ).reshape(n, patches, self.config.width)
    clip_NR = jnp.ones((n, r), jnp.int32)
    x_NLD, layers = self._run(self.decoder, x_NLD, clip_NR, cache.layers)
    wave_NS, tail_NS = self._synthesize(self.head_norm(x_NLD), cache.tail_NS)
    return StreamCache(cache.past_NS, tail_NS, layers), wave_NS

  def _run(
    self, layers: Sequence[Layer], x_NLD: Array, clip_NR: Array, caches: LayerCache
  ) -> tuple[Array, LayerCache]:
    """Returns the patches after these layers, and the new pasts of the layers."""
    clip_NL = jnp.repeat(clip_NR, self.config.subframes, axis=1)

    def apply(
      layer: Layer, x_NLD: Array, cache: LayerCache
    ) -> tuple[Array, LayerCache]:
      return layer(x_NLD, clip_NL, cache)

    return scan_blocks(apply, layers, x_NLD, caches, dtype=x_NLD.dtype)

  def _synthesize(self, x_NLD: Array, tail_NS: Array) -> tuple[Array, Array]:
    """Returns the samples of patches, and the tail that overlaps with the next hop.

    A patch becomes the spectra of short hops, as magnitude and phase (Vocos, Siuzdak
    2023), whose sounds are added up. A hop fades in over its first half while the one
    before it fades out: a sound can run across the border, yet no sample waits for a
    later patch.
    """
    n, l, _ = x_NLD.shape
    spectra = self.head(x_NLD).reshape(n, l, self.config.hops, 2 * self.bins)
    log_magnitude, phase = jnp.split(spectra, 2, axis=-1)
    phase = phase + self.phase[...][None, None]
    log_magnitude = jnp.minimum(log_magnitude, MAX_LOG_MAGNITUDE)
    magnitude = jnp.exp(log_magnitude) * (SPEECH_RMS / self.bins**0.5)
    cosines = magnitude * jnp.cos(phase)
    sines = magnitude * jnp.sin(phase)
    spectrum = jnp.concatenate([cosines, sines], axis=-1)
    sound = spectrum @ jnp.asarray(synthesis_matrix(self.hop, self.ramp))
    sound_NLS = sound.reshape(n, l * self.config.hops, -1)
    tails_NLS = jnp.concatenate([tail_NS[:, None], sound_NLS[:, :, self.hop :]], axis=1)
    start_NLS = sound_NLS[:, :, : self.ramp] + tails_NLS[:, :-1]
    rest_NLS = sound_NLS[:, :, self.ramp : self.hop]
    wave_NLS = jnp.concatenate([start_NLS, rest_NLS], axis=-1)
    return wave_NLS.reshape(n, l * self.patch), tails_NLS[:, -1]
