"""The speech codec of a finished run, to code sounds outside of a step: `omni_jax.convert --codes=RUN`."""

from collections.abc import Callable
import functools
import hashlib
from typing import Any

from flax import nnx
import jax
import numpy as np

from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.checkpoint.init_values import init_codec_values
from omni_jax.errors import UserError
from omni_jax.modalities.audio.codec import Codec
from omni_jax.model import codes_of, merge, OmniConfig
from omni_jax.sharding import name_of
from omni_jax.train.state import codebooks_of
from omni_jax.types import AudioConfig

PIECE = 32  # a sound is padded to a multiple of as many frames: few shapes to compile, and each depends on it alone


class Coder:
  """Turns a wave into codes (frames, codebooks), each on its own, so that company changes nothing. May be pickled."""

  def __init__(self, omni: OmniConfig, values: dict[str, Any]):
    self.omni, self._values = omni, jax.tree.map(np.asarray, values)
    self.fingerprint = fingerprint(values, omni.media.audio)

  def __getstate__(self) -> dict[str, Any]:
    return {key: value for key, value in self.__dict__.items() if key != '_codes'}

  @functools.cached_property
  def _codes(self) -> Callable[..., jax.Array]:
    codec = nnx.eval_shape(
      lambda: Codec(self.omni.codec, self.omni.media.audio, rngs=nnx.Rngs(0))
    )
    return jax.jit(
      lambda values, *pool: codes_of(
        merge(codec, values['params']), codebooks_of(values), *pool
      )
    )

  def __call__(self, wave: np.ndarray) -> np.ndarray:
    frame, frames = (
      self.omni.media.audio.frame,
      -(-len(wave) // self.omni.media.audio.frame),
    )
    padded = np.zeros((1, -(-frames // PIECE) * PIECE, frame), np.float32)
    padded.reshape(-1)[: len(wave)] = wave
    return np.asarray(
      self._codes(self._values, padded, np.ones(padded.shape[:2], np.int32))
    )[0, :frames]


def fingerprint(values: dict[str, Any], audio: AudioConfig) -> str:
  """Digest of all that codes depend on: parameters, codebooks, and how samples become frames and mel columns."""
  digest = hashlib.blake2b(
    f'{audio.rate} {audio.mels} {audio.mel_hops} {audio.mel_window}'.encode(),
    digest_size=8,
  )
  books = values['codebooks']['codebook_JEZ']
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    {'params': values['params'], 'books': books}
  ):
    array = np.asarray(leaf)
    digest.update(
      f'{name_of(path)} {array.dtype} {array.shape}'.encode() + array.tobytes()
    )
  return digest.hexdigest()


def restore_values(
  workdir: str, omni: OmniConfig, place: jax.sharding.Sharding
) -> tuple[dict[str, Any], int]:
  """Parameters and codebooks of a run's codec stage, and the step that they are of."""
  shapes = jax.eval_shape(functools.partial(init_codec_values, omni, seed=0))
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
  )
  wanted = {'params': like['params'], 'buffers': {'codebooks': like['codebooks']}}
  with Checkpoints(workdir, 'codec', read_only=True) as checkpoints:
    model, step = checkpoints.restore_model(wanted)
  return {'params': model['params'], 'codebooks': model['buffers']['codebooks']}, step


def coder_of(workdir: str, config: Any) -> Coder:
  """Of a run whose codec stage is finished, or that took the codec of another run.

  Raises:
    UserError: if it is not finished.
  """
  omni, source = OmniConfig.from_config(config.model), config.codec.get('init_from')
  if omni.codec.entries > 1 << 16:
    raise UserError(
      f'{workdir}: codes of {omni.codec.entries} entries do not fit the 16 bits of a record'
    )
  values, step = restore_values(
    source or workdir, omni, jax.sharding.SingleDeviceSharding(jax.devices()[0])
  )
  if not source and step < config.codec.steps:
    raise UserError(
      f'the codec stage of {workdir} stands at step {step} of {config.codec.steps}: finish it first'
    )
  return Coder(omni, values)
