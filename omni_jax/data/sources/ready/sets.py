"""The table of ready sets, and how one is opened by its name."""

from ml_collections import ConfigDict

from omni_jax.data.sources.ready.barista import Barista
from omni_jax.data.sources.ready.emoji import Emoji
from omni_jax.data.sources.ready.fsdd import Fsdd
from omni_jax.data.sources.ready.mnist import Mnist
from omni_jax.data.sources.ready.ready_set import ReadySet, selection_of
from omni_jax.data.sources.ready.text20 import Text20
from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts

READY: dict[str, type[ReadySet]] = {
  kind.NAME: kind for kind in (Fsdd, Mnist, Emoji, Barista, Text20)
}


def open_ready(config: ConfigDict, hosts: Hosts, split: str) -> ReadySet:
  """Opens a split of the set that `config.source` names.

  Args:
    config: `config.data`; see `Selection` for the keys that select examples.
    hosts: hosts that decode the media.
    split: name of the split.

  Raises:
    UserError: if no folder is named, or the set does not have what is requested.
  """
  kind = READY[config.source]
  if not config.root:
    raise UserError(
      f'config.data.source={config.source!r} reads files: name the folder that holds '
      f'{kind.FOLDER}/ with --config.data.root=DIR'
    )
  return kind(config.root, selection_of(config, split), hosts)
