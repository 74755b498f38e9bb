"""The table of ready sets, and how one is opened by its name."""

from typing import Any

from omni_jax.data.sources.ready.barista import Barista
from omni_jax.data.sources.ready.emoji import Emoji
from omni_jax.data.sources.ready.fsdd import Fsdd
from omni_jax.data.sources.ready.mnist import Mnist
from omni_jax.data.sources.ready.ready_set import asked_of, ReadySet
from omni_jax.data.sources.ready.text20 import Text20
from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts

READY: dict[str, type[ReadySet]] = {
  kind.NAME: kind for kind in (Fsdd, Mnist, Emoji, Barista, Text20)
}


def open_ready(config: Any, hosts: Hosts, split: str) -> ReadySet:
  """A split of the set that `config.source` names; see `Asked` for what else `config`, a `config.data`, may say."""
  if not config.root:
    raise UserError(
      f'config.data.source={config.source!r} reads files: give the folder that holds '
      f'{READY[config.source].FOLDER}/, --config.data.root=DIR'
    )
  return READY[config.source](config.root, asked_of(config, split), hosts)
