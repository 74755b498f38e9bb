"""The device table of media: embedding, head and autoencoder of each, and both tables as one argument."""

from collections.abc import Mapping
from typing import NamedTuple

from omni_jax.modalities.audio.device import AUDIO
from omni_jax.modalities.contract import Host
from omni_jax.modalities.device import Autoencoder, Device
from omni_jax.modalities.hosts import HOSTS
from omni_jax.modalities.image.device import IMAGE

DEVICES: Mapping[str, Device] = {'image': IMAGE, 'audio': AUDIO}


class Tables(NamedTuple):
  """The media that a model can have: what they provide on the host and on the devices, by name."""

  hosts: Mapping[str, tuple[type | None, type[Host]]] = HOSTS
  devices: Mapping[str, Device] = DEVICES

  def autoencoders(self) -> dict[str, tuple[str, Autoencoder]]:
    """Returns name of an autoencoder -> (its medium, itself)."""
    found = {}
    for medium, device in self.devices.items():
      if device.autoencoder:
        found[device.autoencoder.name] = (medium, device.autoencoder)
    return found


TABLES = Tables()
