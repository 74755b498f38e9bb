"""The row of images in the device table."""

from flax import nnx

from omni_jax.modalities.device import (
  Device,
  Flops,
  MediumConfigs,
  Size,
  swiglu_weights,
)
from omni_jax.modalities.image.embed import ImageEmbed, ImageEmbedConfig
from omni_jax.modalities.image.head import DiTConfig, DiTHead
from omni_jax.types import RowBudget


def _embed(parts: MediumConfigs, rngs: nnx.Rngs) -> ImageEmbed:
  block = parts.streams['seen'].block
  return ImageEmbed(parts.embed, parts.sizes, block, parts.width, rngs=rngs)


def _head(parts: MediumConfigs, rngs: nnx.Rngs) -> DiTHead:
  block = parts.streams['drawn'].block
  return DiTHead(parts.head, parts.sizes, block, parts.width, rngs=rngs)


def _sizes(parts: MediumConfigs) -> list[Size]:
  embed = parts.embed
  head = parts.head
  sizes: list[Size] = []
  if embed.layers:
    sizes.append(('config.model.image.embed.heads', embed.heads, 'heads'))
    sizes.append(('config.model.image.embed.hidden', embed.hidden, 'mlp'))
  sizes.append(('config.model.image.head.width', head.width, 'expert_embed'))
  sizes.append(('config.model.image.head.heads', head.heads, 'heads'))
  sizes.append(('config.model.image.head.hidden', head.hidden, 'mlp'))
  # The width again, for the projections that modulate the blocks.
  sizes.append(('config.model.image.head.width', head.width, 'mlp'))
  return sizes


def _flops(parts: MediumConfigs, budget: RowBudget) -> Flops:
  seen, _ = budget.room('image.seen')
  drawn, images = budget.room('image.drawn')
  width = parts.width
  values = parts.sizes.values
  seen_block = min(parts.streams['seen'].block, seen)
  layer = 4 * width**2 + swiglu_weights(width, parts.embed.hidden)
  layer += 2 * width * seen_block
  embed = (seen + drawn) * values * width + seen * parts.embed.layers * layer

  dit = parts.head
  drawn_block = min(parts.streams['drawn'].block, drawn)
  per_layer = 4 * dit.width**2 + swiglu_weights(dit.width, dit.hidden)
  per_layer += 2 * dit.width * drawn_block
  per_patch = dit.layers * per_layer + dit.width * (2 * values + width)
  # The modulation of the blocks and of the output, and the embedding of the time.
  per_image = dit.layers * 6 * dit.width**2 + 2 * dit.width**2
  per_image += swiglu_weights(dit.width, dit.width)
  head = dit.noises * (drawn * per_patch + images * per_image)
  return Flops(2.0 * budget.pools * embed, 2.0 * budget.pools * head)


IMAGE = Device(_embed, _head, ImageEmbedConfig, DiTConfig, sizes=_sizes, flops=_flops)
