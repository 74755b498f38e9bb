"""Causal, streaming neural audio codec made of matmuls: 12.5 latent frames per second, wave in, wave out.

A frame is cut into `subframes` patches; windowed-attention layers run over the patches; the patches of a frame are
merged into one latent, which `quantizer.py` codes; the decoder mirrors it. Nothing looks ahead, so a whole clip and any
split of it into chunks of whole frames give the same latents; nor into another clip, so clips that lie one behind the
other give the same latents as each alone.
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
from omni_jax.nn.layers import Linear, rms_norm, RMSNorm, SwiGLU, zeros
from omni_jax.sharding import Role

SPEECH = 0.1  # root mean square of usual speech: the decoder's scale before training
uniform = nnx.initializers.uniform


@dataclasses.dataclass(frozen=True)
class CodecConfig(QuantizerConfig):
  """Sizes of the codec; the quantiser's are inherited.

  Attributes:
    width: of a patch inside encoder and decoder (D).
    layers: of the encoder, and again of the decoder.
    hops: spectra that the decoder makes of a patch.
    heads: of attention.
    hidden: width inside the SwiGLU.
    window: patches that attention reaches back, itself included.
    subframes: patches in a frame.
    commitment: weight of the quantiser's commitment in the loss.
    waveform: weight of the samples' L1 in the loss; at 800 bit/s the phase cannot be coded, so that it only smears.
    dropout: share of training clips of which only the first few codebooks are kept.
    unquantized: share of training clips that the decoder hears without quantisation (Moshi, Défossez et al. 2024).
  """

  width: int = 128
  layers: int = 2
  hops: int = 2
  heads: int = 4
  hidden: int = 256
  window: int = 16
  subframes: int = 4
  commitment: float = 0.05
  waveform: float = 0.0
  dropout: float = 0.0
  unquantized: float = 0.5


class LayerCache(NamedTuple):
  """Keys and values of the last window-1 patches, and the number of the clip that each is of; 0 before its start."""

  key_NLHA: Array
  value_NLHA: Array
  clip_NL: Array


def near_attention(
  q_NLHA: Float[Array, 'N L H A'],
  clip_NL: Int[Array, 'N L'],
  keys: LayerCache,
  bias_HW: Float[Array, 'H W'],
) -> Float[Array, 'N L H A']:
  """Attends to the last W keys of a query's own clip, itself included, with a bias per distance; all logits at once.

  Args:
    keys: those of the queries, and before them those of the past.
  """
  l, s = q_NLHA.shape[1], keys.clip_NL.shape[1]
  distance = jnp.arange(l)[:, None] + s - l - jnp.arange(s)[None]
  window = bias_HW.shape[1]
  near = (distance >= 0) & (distance < window)
  same = clip_NL[:, :, None] == keys.clip_NL[:, None]
  bias = bias_HW[:, jnp.clip(distance, 0, window - 1)]
  scale = q_NLHA.shape[-1] ** -0.5
  score = jnp.einsum('nqha,nkha->nhqk', q_NLHA, keys.key_NLHA) * scale + bias[None]
  score = jnp.where((near[None] & same)[:, None], score, -1e30)
  return jnp.einsum('nhqk,nkha->nqha', jax.nn.softmax(score), keys.value_NLHA)


def chunked_attention(
  q_NLHA: Float[Array, 'N L H A'],
  clip_NL: Int[Array, 'N L'],
  keys: LayerCache,
  bias_HW: Float[Array, 'H W'],
) -> Float[Array, 'N L H A']:
  """Returns what `near_attention` does, whose cost grows with the length: L · 2W logits instead of L · S.

  A chunk of W queries looks at its own chunk of keys and at the one before.
  """
  n, l, *head = q_NLHA.shape
  window, past = bias_HW.shape[1], keys.clip_NL.shape[1] - l
  chunks = -(-l // window)
  behind = chunks * window - l

  def queries(a: Array) -> Array:
    padded = jnp.pad(a, [(0, 0), (0, behind)] + [(0, 0)] * (a.ndim - 2))
    return padded.reshape(n * chunks, window, *a.shape[2:])

  def pairs(a: Array) -> Array:
    # Nothing is of clip -1.
    ends = [(0, 0), (window - past, behind)] + [(0, 0)] * (a.ndim - 2)
    padded = jnp.pad(a, ends, constant_values=-1)
    chunk = padded.reshape(n, chunks + 1, window, *a.shape[2:])
    pair = jnp.concatenate([chunk[:, :-1], chunk[:, 1:]], axis=2)
    return pair.reshape(n * chunks, 2 * window, *a.shape[2:])

  near = LayerCache(*(pairs(a) for a in keys))
  seen = near_attention(queries(q_NLHA), queries(clip_NL), near, bias_HW)
  return seen.reshape(n, chunks * window, *head)[:, :l]


class StreamCache(NamedTuple):
  """What the encoder or the decoder remembers between two chunks."""

  past_NS: Array  # encoder: last frame heard
  tail_NS: Array  # decoder: what the last hop adds to the next
  layers: tuple[LayerCache, ...]


class Layer(nnx.Module):
  """Pre-norm attention over the clip's last `window` patches with a learned bias per distance, then SwiGLU."""

  def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
    assert config.width % config.heads == 0, (config.width, config.heads)
    self.heads, self.window = config.heads, config.window
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
    n, l, d = x_NLD.shape
    q, k, v = jnp.split(
      self.qkv(self.norm(x_NLD)).reshape(n, l, 3 * self.heads, d // self.heads),
      3,
      axis=2,
    )
    new = LayerCache(k, v, clip_NL)
    keys = LayerCache(
      *(jnp.concatenate(pair, axis=1) for pair in zip(cache, new, strict=True))
    )
    attend = near_attention if l <= 2 * self.window else chunked_attention
    seen_NLHA = attend(q, clip_NL, keys, self.bias_HW[...])
    x_NLD = x_NLD + self.out(seen_NLHA.reshape(n, l, d))
    keep = self.window - 1
    cache = LayerCache(*(a[:, max(0, a.shape[1] - keep) :] for a in keys))
    return x_NLD + self.mlp(self.mlp_norm(x_NLD)), cache


class Codec(nnx.Module):
  """Wave <-> latent frames. The codes lie between, in `quantizer.quantize` and `dequantize`."""

  def __init__(self, config: CodecConfig, audio: AudioConfig, *, rngs: nnx.Rngs):
    assert (
      audio.frame % config.subframes == 0 and audio.mel_hops % config.subframes == 0
    ), (audio, config.subframes)
    assert audio.mel_window <= audio.frame, (audio.mel_window, audio.frame)
    self.config, self.audio = config, audio
    self.patch = audio.frame // config.subframes
    mel = audio.mel_hops * audio.mels // config.subframes
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
    """Latents of the whole frames of clips, one a row; samples in [-1, 1]."""
    return self.encode_stream(self._start(wave_NS.shape[0], 0), wave_NS)[1]

  def encode_pool(
    self, frame_NRS: Float[Array, 'N R S'], clip_NR: Int[Array, 'N R']
  ) -> Float[Array, 'N R Z']:
    """Latents of the frames of clips that lie one behind the other, each with a number of its own."""
    return self._encode(self._start(frame_NRS.shape[0], 0), frame_NRS, clip_NR)[1]

  def decode(self, latent_NRZ: Float[Array, 'N R Z']) -> Float[Array, 'N S']:
    return self.decode_stream(self._start(latent_NRZ.shape[0], 0), latent_NRZ)[1]

  def init_cache(self, n: int) -> StreamCache:
    """Of `encode_stream` or of `decode_stream` (one each), at the start of n clips."""
    return self._start(n, self.config.window - 1)

  def _start(self, n: int, past: int) -> StreamCache:
    head = self.config.width // self.config.heads
    key = jnp.zeros((n, past, self.config.heads, head))
    layer = LayerCache(key, key, jnp.zeros((n, past), jnp.int32))
    return StreamCache(
      jnp.zeros((n, self.audio.frame)),
      jnp.zeros((n, self.ramp)),
      (layer,) * self.config.layers,
    )

  def encode_stream(
    self, cache: StreamCache, wave_NS: Float[Array, 'N S']
  ) -> tuple[StreamCache, Float[Array, 'N R Z']]:
    """Latents of the next whole frames of clips, one a row."""
    n, samples = wave_NS.shape
    frame = self.audio.frame
    assert samples % frame == 0, (samples, frame)
    frame_NRS = wave_NS.reshape(n, samples // frame, frame)
    return self._encode(cache, frame_NRS, jnp.ones(frame_NRS.shape[:2], jnp.int32))

  def _encode(
    self, cache: StreamCache, frame_NRS: Array, clip_NR: Array
  ) -> tuple[StreamCache, Array]:
    n, r, _ = frame_NRS.shape
    heard_NRS = jnp.concatenate([cache.past_NS[:, None], frame_NRS], axis=1)
    heard_NR = jnp.concatenate([clip_NR[:, :1], clip_NR], axis=1)
    mel_NRX = log_mel_patches(heard_NRS, heard_NR, self.audio)[:, 1:]
    patch_NRLS = with_past(heard_NRS, heard_NR, self.patch)[:, 1:].reshape(
      n, r, -1, self.patch
    )
    # Loudness spans decades: the wave as such for the phase, the mel columns for the rest.
    x_NRLX = jnp.concatenate(
      [
        10 * patch_NRLS[:, :, :-1],
        10 * patch_NRLS[:, :, 1:],
        mel_NRX.reshape(n, r, self.config.subframes, -1),
      ],
      axis=-1,
    )
    x_NLD = self.embed(x_NRLX.reshape(n, r * self.config.subframes, -1))
    x_NLD, layers = self._run(self.encoder, x_NLD, clip_NR, cache.layers)
    # Of fixed size: otherwise the commitment shrinks the latents and the last codebooks go unused.
    latent_NRZ = rms_norm(self.merge(self.merge_norm(x_NLD).reshape(n, r, -1)))
    return StreamCache(heard_NRS[:, -1], cache.tail_NS, layers), latent_NRZ

  def decode_stream(
    self, cache: StreamCache, latent_NRZ: Float[Array, 'N R Z']
  ) -> tuple[StreamCache, Float[Array, 'N S']]:
    """Samples of the next frames of clips, one a row."""
    n, r, _ = latent_NRZ.shape
    x_NLD = self.split(latent_NRZ).reshape(
      n, r * self.config.subframes, self.config.width
    )
    x_NLD, layers = self._run(
      self.decoder, x_NLD, jnp.ones((n, r), jnp.int32), cache.layers
    )
    wave_NS, tail_NS = self._synthesize(self.head_norm(x_NLD), cache.tail_NS)
    return StreamCache(cache.past_NS, tail_NS, layers), wave_NS

  def _run(
    self,
    layers: Sequence[Layer],
    x_NLD: Array,
    clip_NR: Array,
    caches: tuple[LayerCache, ...],
  ) -> tuple[Array, tuple[LayerCache, ...]]:
    clip_NL, after = jnp.repeat(clip_NR, self.config.subframes, axis=1), []
    for layer, cache in zip(layers, caches, strict=True):
      x_NLD, cache = layer(x_NLD, clip_NL, cache)
      after.append(cache)
    return x_NLD, tuple(after)

  def _synthesize(self, x_NLD: Array, tail_NS: Array) -> tuple[Array, Array]:
    """Spectra of short hops, magnitude and phase (Vocos, Siuzdak 2023), laid over each other: (samples, last tail).

    A hop fades in over its first half, while the one before it fades out: one sound can run over the border, yet no
    sample waits for a later patch.
    """
    n, l, _ = x_NLD.shape
    size, phase = jnp.split(
      self.head(x_NLD).reshape(n, l, self.config.hops, 2 * self.bins), 2, axis=-1
    )
    phase = phase + self.phase[...][None, None]
    size = jnp.exp(jnp.minimum(size, 6.0)) * (SPEECH / self.bins**0.5)
    spectrum = jnp.concatenate([size * jnp.cos(phase), size * jnp.sin(phase)], axis=-1)
    sound_NLS = (spectrum @ jnp.asarray(synthesis_matrix(self.hop, self.ramp))).reshape(
      n, l * self.config.hops, -1
    )
    tails_NLS = jnp.concatenate([tail_NS[:, None], sound_NLS[:, :, self.hop :]], axis=1)
    start_NLS = sound_NLS[:, :, : self.ramp] + tails_NLS[:, :-1]
    wave_NLS = jnp.concatenate(
      [start_NLS, sound_NLS[:, :, self.ramp : self.hop]], axis=-1
    )
    return wave_NLS.reshape(n, l * self.patch), tails_NLS[:, -1]
