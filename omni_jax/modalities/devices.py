"""Lists the embedding, head and autoencoder of every medium: the device table."""

from collections.abc import Mapping
from typing import NamedTuple

from omni_jax.modalities.audio.device import AUDIO
from omni_jax.modalities.device import Autoencoder, Device
from omni_jax.modalities.hosts import HOSTS, HostTable
from omni_jax.modalities.image.device import IMAGE

DEVICES: Mapping[str, Device] = {'image': IMAGE, 'audio': AUDIO}


class Tables(NamedTuple):
  """Both tables of the media that a model can have, by name of the medium.

  Attributes:
    hosts: the numpy side of each medium: (config dataclass, Host class); the dataclass
      is None for text.
    devices: the jax side of each medium.
  """

  hosts: HostTable = HOSTS
  devices: Mapping[str, Device] = DEVICES

  def autoencoders(self) -> dict[str, tuple[str, Autoencoder]]:
    """Returns (medium, autoencoder) by name of the autoencoder."""
    autoencoders = {}
    for medium, device in self.devices.items():
      if device.autoencoder:
        autoencoders[device.autoencoder.name] = (medium, device.autoencoder)
    return autoencoders


TABLES = Tables()
