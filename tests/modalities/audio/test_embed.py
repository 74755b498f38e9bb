"""What is heard: levels of a clip, convolutions over columns, and clips one behind the other as each alone."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omni_jax.errors import UserError
from omni_jax.modalities.audio.embed import AudioEmbed, AudioEmbedConfig, CausalConv
from omni_jax.modalities.audio.mel import levelled, log_mel_patches, QUIET
from omni_jax.modalities.audio.sizes import AudioConfig

AUDIO = AudioConfig()
FRAMES = (3, 1, 4)  # of each clip
KINDS = [dict(), dict(level='clip'), dict(channels=8), dict(level='clip', channels=8)]


def embed(**kind) -> AudioEmbed:
  return AudioEmbed(
    AudioEmbedConfig(hidden=16, **kind),
    AUDIO,
    codebooks=2,
    entries=4,
    width=12,
    rngs=nnx.Rngs(0),
  )


def clips(seed: int = 0) -> list[np.ndarray]:
  """Noise that rises and falls, so that columns differ in loudness."""
  rng = np.random.default_rng(seed)
  return [
    (
      0.1 * rng.standard_normal((n, AUDIO.frame)) * np.linspace(0.2, 1, n)[:, None]
    ).astype(np.float32)
    for n in FRAMES
  ]


def pool(waves: list[np.ndarray], room: int = 10) -> tuple[jax.Array, jax.Array]:
  frames = np.concatenate(
    [*waves, np.zeros((room - sum(FRAMES), AUDIO.frame), np.float32)]
  )
  clip = np.repeat([1, 2, 3, 0], [*FRAMES, room - sum(FRAMES)])
  return jnp.asarray(frames)[None], jnp.asarray(clip)[None]


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_a_pool_is_heard_as_each_clip_alone(kind):
  heard = embed(**kind)
  frames_BRS, clip_BR = pool(clips())

  def apart(
    frames_RS,
  ):  # each clip in a row of its own, padded with silence that belongs to no clip
    rows = jnp.split(frames_RS[: sum(FRAMES)], np.cumsum(FRAMES)[:-1])
    return jnp.concatenate(
      [
        heard.hear(
          jnp.pad(x, ((0, 5 - len(x)), (0, 0)))[None],
          (jnp.arange(5) < len(x)).astype(jnp.int32)[None],
          jnp.float32,
        )[0, : len(x)]
        for x in rows
      ]
    )

  together = lambda frames_RS: heard.hear(frames_RS[None], clip_BR, jnp.float32)[
    0, : sum(FRAMES)
  ]
  np.testing.assert_allclose(together(frames_BRS[0]), apart(frames_BRS[0]), atol=2e-5)
  weight = jax.random.normal(jax.random.key(1), (sum(FRAMES), 12))
  gradients = [
    jax.grad(lambda x, f=f: (f(x) * weight).sum())(frames_BRS[0])
    for f in (together, apart)
  ]
  assert np.abs(gradients[0]).max() > 0
  np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_only_the_level_of_a_clip_looks_ahead(kind):
  heard, (frames_BRS, clip_BR) = embed(**kind), pool(clips())
  gradient_R = np.abs(
    jax.grad(lambda x: heard.hear(x, clip_BR, jnp.float32)[0, 1].sum())(frames_BRS)
  )[0].sum(axis=1)
  assert (
    gradient_R[:2].all() and not gradient_R[3:].any()
  )  # its own clip has three frames
  assert bool(gradient_R[2]) == ('level' in kind)


def test_level_of_a_clip_takes_away_loudness_and_tone():
  """A band that is louder by the same factor all through a clip is the same to hear."""
  mel_NRX = log_mel_patches(*pool(clips()), AUDIO)
  clip_NR = pool(clips())[1]
  colour = np.tile(
    np.linspace(-1, 1, AUDIO.mels), AUDIO.mel_hops
  )  # as long as the loud columns stay the loud ones
  as_it_was, coloured = (
    levelled(mel + 0.3, clip_NR, AUDIO.mels)
    for mel in (mel_NRX - 0.3, mel_NRX + colour)
  )
  np.testing.assert_allclose(coloured, as_it_was, atol=1e-5)
  assert as_it_was.min() >= QUIET
  loud = np.asarray(as_it_was[0, :3])  # the first clip: columns are about its mean
  assert abs(loud.mean()) < 0.5 and np.ptp(loud) > 0.5


def test_silence_has_a_level():
  frames_BRS, clip_BR = pool([np.zeros((n, AUDIO.frame), np.float32) for n in FRAMES])
  value, gradient = jax.value_and_grad(
    lambda x: levelled(log_mel_patches(x, clip_BR, AUDIO), clip_BR, AUDIO.mels).sum()
  )(frames_BRS)
  assert value == pytest.approx(0, abs=1e-3) and np.isfinite(gradient).all()


def test_convolution_is_that_of_the_textbook():
  conv = CausalConv(5, 7, rngs=nnx.Rngs(0))
  x_NRCW = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
  x_NCW = x_NRCW.reshape(2, 12, 5)
  full = jax.lax.conv_general_dilated(
    x_NCW,
    conv.mix.w[...].reshape(3, 5, 7),
    (1,),
    [(2, 0)],
    dimension_numbers=('NWC', 'WIO', 'NWC'),
  )
  expected = jax.nn.gelu(full).reshape(2, 6, 2, 7).max(axis=2)
  np.testing.assert_allclose(
    conv(x_NRCW, jnp.ones((2, 3), jnp.int32)).reshape(2, 6, 7),
    expected,
    rtol=1e-4,
    atol=1e-5,
  )


def test_columns_that_do_not_halve_twice_are_refused():
  with pytest.raises(
    UserError, match=r'model\.audio\.embed\.channels=8.*6 mel columns.*mel_hops'
  ):
    AudioEmbed(
      AudioEmbedConfig(channels=8),
      AudioConfig(rate=6000, mel_hops=6),
      2,
      4,
      12,
      rngs=nnx.Rngs(0),
    )
