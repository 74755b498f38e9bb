"""Encodes media with the autoencoders of a finished run, for `convert --codes=RUN`."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from omni_jax.checkpoint.frozen import fingerprint, finished_autoencoder
from omni_jax.data.sources.records import CODE
from omni_jax.errors import UserError
from omni_jax.model import encode_pieces, ModelConfig
from omni_jax.types import Span

PIECE = 32  # items are padded to a multiple of this many pieces: few shapes to compile
CODE_BITS = 8 * CODE.itemsize


class Coder:
  """Turns a payload into codes (pieces, …). It may be pickled.

  Payloads are encoded one at a time, so that a code never depends on other payloads.

  Attributes:
    name: name of the autoencoder.
    medium: medium of the payloads.
    fingerprint: digest that changes when the codes would change.
  """

  def __init__(self, model_config: ModelConfig, name: str, values: dict[str, Any]):
    self.model_config = model_config
    self.name = name
    self._values = jax.tree.map(np.asarray, values)
    self.medium, _ = model_config.tables.autoencoders()[name]
    self.fingerprint = fingerprint(model_config, name, values)
    self.host = model_config.hosts()[self.medium]

  def __getstate__(self) -> dict[str, Any]:
    state = dict(self.__dict__)
    state.pop('_encode', None)  # a jitted function cannot be pickled
    return state

  @functools.cached_property
  def _encode(self) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(encode_pieces, self.model_config, self.name))

  def __call__(self, payload: Any) -> np.ndarray:
    (pieces_M,) = self.host.pieces(Span(self.medium, payload=payload))
    count = len(pieces_M)
    padded = -(-count // PIECE) * PIECE
    value_1M = np.zeros((1, padded, *pieces_M.shape[1:]), pieces_M.dtype)
    value_1M[0, :count] = pieces_M
    item_1M = np.ones((1, padded), np.int32)
    codes_1M = self._encode(self._values, value_1M, item_1M)
    return np.asarray(codes_1M)[0, :count]


def coders_of(workdir: str, config: ConfigDict) -> dict[str, Coder]:
  """Returns the coders of a run, by medium.

  There is one for every autoencoder whose codes the model of the run reads or writes.

  Raises:
    UserError: if the stage of an autoencoder is not finished, or if its codes do not
      fit the records.
  """
  model_config = ModelConfig.from_config(config.model)
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  coders = {}
  for name in sorted(set(model_config.coded_streams().values())):
    codes = model_config.codes_of(name)
    if codes.entries > 1 << CODE_BITS:
      raise UserError(
        f'{workdir}: codes with {codes.entries} entries do not fit into the '
        f'{CODE_BITS} bits of a record'
      )
    values = finished_autoencoder(workdir, config, model_config, name, sharding)
    coder = Coder(model_config, name, values)
    coders[coder.medium] = coder
  return coders
