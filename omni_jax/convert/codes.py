"""The autoencoders of a finished run, to code media outside of a step: `omni_jax.convert --codes=RUN`."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np

from omni_jax.checkpoint.frozen import fingerprint, finished_autoencoder
from omni_jax.errors import UserError
from omni_jax.model import encode_pieces, ModelConfig
from omni_jax.types import Span

PIECE = 32  # an item is padded to a multiple of as many pieces: few shapes to compile
MOST_ENTRIES = 1 << 16  # a record has 16 bits for a code


class Coder:
  """Turns a payload into codes (pieces, …), each on its own, so that company changes nothing. May be pickled.

  Attributes:
    medium: whose payloads it codes.
    fingerprint: changes when the codes would.
  """

  def __init__(self, model_config: ModelConfig, name: str, values: dict[str, Any]):
    self.model_config, self.name = model_config, name
    self._values = jax.tree.map(np.asarray, values)
    self.medium, _ = model_config.tables.autoencoders()[name]
    self.fingerprint = fingerprint(model_config, name, values)
    self.host = model_config.hosts()[self.medium]

  def __getstate__(self) -> dict[str, Any]:
    return {key: value for key, value in self.__dict__.items() if key != '_codes'}

  @functools.cached_property
  def _codes(self) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(encode_pieces, self.model_config, self.name))

  def __call__(self, payload: Any) -> np.ndarray:
    (pieces_M,) = self.host.pieces(Span(self.medium, payload=payload))
    room = -(-len(pieces_M) // PIECE) * PIECE
    value_1M = np.zeros((1, room, *pieces_M.shape[1:]), pieces_M.dtype)
    value_1M[0, : len(pieces_M)] = pieces_M
    item_1M = np.ones((1, room), np.int32)
    codes = self._codes(self._values, value_1M, item_1M)
    return np.asarray(codes)[0, : len(pieces_M)]


def coders_of(workdir: str, config: Any) -> dict[str, Coder]:
  """Returns the coders of a run, by medium: of every autoencoder whose codes its model reads or writes.

  Raises:
    UserError: if a stage is not finished.
  """
  model_config = ModelConfig.from_config(config.model)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  coders = {}
  for name in sorted(set(model_config.coded().values())):
    codes = model_config.codes_of(name)
    if codes.entries > MOST_ENTRIES:
      raise UserError(
        f'{workdir}: codes of {codes.entries} entries do not fit the 16 bits of a record'
      )
    values = finished_autoencoder(workdir, config, name, place)
    coder = Coder(model_config, name, values)
    coders[coder.medium] = coder
  return coders
