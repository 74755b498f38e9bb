"""The decoder of configs/base.py on text alone, for other configs to start from."""

from ml_collections import ConfigDict

from omni_jax.config import derived


def get_config() -> ConfigDict:
  c = derived(__file__, 'base')
  without_media(c)
  c.cpu_devices = 2
  c.stages = ('omni', 'evaluate')
  return c


def without_media(c: ConfigDict) -> None:
  """Deletes all media but text: their networks, streams, losses and augmentation."""
  for medium in ('image', 'audio'):
    del c.model[medium]
    del c.data.budget.streams[medium]
    del c.omni.losses[medium]
  del c.model.codec
  c.omni.losses.inside = ConfigDict()
  c.data.augment = ConfigDict()
