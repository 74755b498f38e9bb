"""Tests levels of a clip, convolutions over columns, and clips in pools.

Clips that follow each other in a pool are heard as each alone.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import part, tiny_run

from omni_jax.errors import UserError
from omni_jax.modalities.audio.device import AUDIO as DEVICE
from omni_jax.modalities.audio.embed import AudioEmbed, CausalConv
from omni_jax.modalities.audio.mel import levelled, log_mel_patches, QUIET
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.model import ModelConfig
from omni_jax.types import RowBudget

AUDIO = AudioConfig()
FRAMES = (3, 1, 4)  # number of frames of each clip
USED = sum(FRAMES)  # frames of the pool that hold a clip
ROOM = 10  # frames that the pool has room for
KINDS = [dict(), dict(level='clip'), dict(channels=8), dict(level='clip', channels=8)]


def make_embed(**kind) -> AudioEmbed:
  config = part('model.audio.embed', hidden=16, **kind)
  return AudioEmbed(config, AUDIO, codebooks=2, entries=4, width=12, rngs=nnx.Rngs(0))


def clips() -> list[np.ndarray]:
  """Returns clips of noise that rises, so that columns differ in loudness."""
  rng = np.random.default_rng(0)
  waves = []
  for frames in FRAMES:
    rise = np.linspace(0.2, 1, frames)[:, None]
    wave = 0.1 * rng.standard_normal((frames, AUDIO.frame)) * rise
    waves.append(wave.astype(np.float32))
  return waves


def pool(waves: list[np.ndarray]) -> tuple[jax.Array, jax.Array]:
  """Returns the frames of all clips in one row, and the number of each frame's clip."""
  empty = np.zeros((ROOM - USED, AUDIO.frame), np.float32)
  frames = np.concatenate([*waves, empty])
  clip = np.repeat([1, 2, 3, 0], [*FRAMES, ROOM - USED])
  return jnp.asarray(frames)[None], jnp.asarray(clip)[None]


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_a_pool_is_heard_as_each_clip_alone(kind):
  embed = make_embed(**kind)
  frames_BRS, clip_BR = pool(clips())

  def together(frames_RS):
    return embed.hear(frames_RS[None], clip_BR, jnp.float32)[0, :USED]

  def alone(frames_RS):
    """Hears one clip in its own row, padded with silence that belongs to no clip."""
    room = 5
    frames = len(frames_RS)
    padded_RS = jnp.pad(frames_RS, ((0, room - frames), (0, 0)))
    clip_R = (jnp.arange(room) < frames).astype(jnp.int32)
    return embed.hear(padded_RS[None], clip_R[None], jnp.float32)[0, :frames]

  def each_alone(frames_RS):
    parts = jnp.split(frames_RS[:USED], np.cumsum(FRAMES)[:-1])
    return jnp.concatenate([alone(part) for part in parts])

  frames_RS = frames_BRS[0]
  np.testing.assert_allclose(together(frames_RS), each_alone(frames_RS), atol=2e-5)
  weight = jax.random.normal(jax.random.key(1), (USED, 12))

  def gradient(hear):
    return jax.grad(lambda frames: (hear(frames) * weight).sum())(frames_RS)

  actual = gradient(together)
  assert np.abs(actual).max() > 0
  np.testing.assert_allclose(actual, gradient(each_alone), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_only_the_level_of_a_clip_looks_ahead(kind):
  embed = make_embed(**kind)
  frames_BRS, clip_BR = pool(clips())

  def second_frame(frames_BRS):
    return embed.hear(frames_BRS, clip_BR, jnp.float32)[0, 1].sum()

  gradient_BRS = np.abs(jax.grad(second_frame)(frames_BRS))
  gradient_R = gradient_BRS[0].sum(axis=1)
  # Its own clip has three frames.
  assert gradient_R[:2].all()
  assert not gradient_R[3:].any()
  assert bool(gradient_R[2]) == ('level' in kind)


def test_the_level_of_a_clip_removes_loudness_and_tone():
  """A band that is louder by the same factor throughout a clip sounds the same.

  That holds as long as the same columns count as loud.
  """
  frames_BRS, clip_BR = pool(clips())
  mel_BRX = log_mel_patches(frames_BRS, clip_BR, AUDIO)
  colour = np.tile(np.linspace(-1, 1, AUDIO.mels), AUDIO.mel_hops)
  plain = levelled(mel_BRX, clip_BR, AUDIO.mels)
  coloured = levelled(mel_BRX + colour + 0.3, clip_BR, AUDIO.mels)
  np.testing.assert_allclose(coloured, plain, atol=1e-5)
  assert plain.min() >= QUIET
  loud = np.asarray(plain[0, :3])  # the first clip, whose columns are about its mean
  assert abs(loud.mean()) < 0.5
  assert np.ptp(loud) > 0.5


def test_silence_levels_to_zero_with_finite_gradients():
  frames_BRS, clip_BR = pool([np.zeros((n, AUDIO.frame), np.float32) for n in FRAMES])

  def total(frames_BRS):
    mel_BRX = log_mel_patches(frames_BRS, clip_BR, AUDIO)
    return levelled(mel_BRX, clip_BR, AUDIO.mels).sum()

  value, gradient = jax.value_and_grad(total)(frames_BRS)
  assert value == pytest.approx(0, abs=1e-3)
  assert np.isfinite(gradient).all()


def test_the_convolution_equals_that_of_jax():
  conv = CausalConv(5, 7, rngs=nnx.Rngs(0))
  x_NRCW = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
  full = jax.lax.conv_general_dilated(
    x_NRCW.reshape(2, 12, 5),
    conv.mix.w[...].reshape(3, 5, 7),
    window_strides=(1,),
    padding=[(2, 0)],
    dimension_numbers=('NWC', 'WIO', 'NWC'),
  )
  expected = jax.nn.gelu(full).reshape(2, 6, 2, 7).max(axis=2)
  y_NRCV = conv(x_NRCW, jnp.ones((2, 3), jnp.int32))
  np.testing.assert_allclose(y_NRCV.reshape(2, 6, 7), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('channels', [0, 8])
def test_the_flops_of_hearing_are_two_per_weight_and_use(channels):
  model = tiny_run().model
  model.audio.embed.channels = channels
  parts = ModelConfig.from_config(model).parts('audio')
  embed = DEVICE.embed(parts, nnx.Rngs(0))
  weights = embed.mel_in.w.size + embed.mel_out.w.size
  for k, conv in enumerate(embed.convs):  # each is followed by half of the columns
    weights += parts.sizes.mel_hops // 2**k * conv.mix.w.size
  budget = RowBudget(rows=2, length=16, streams={'audio.heard': (ROOM, 3)})
  assert DEVICE.flops(parts, budget).embed == 2 * 2 * ROOM * weights


def test_columns_that_cannot_be_halved_twice_are_refused():
  config = part('model.audio.embed', channels=8)
  audio = AudioConfig(rate=6000, mel_hops=6)
  message = r'model\.audio\.embed\.channels=8.*6 mel columns.*mel_hops'
  with pytest.raises(UserError, match=message):
    AudioEmbed(config, audio, codebooks=2, entries=4, width=12, rngs=nnx.Rngs(0))
