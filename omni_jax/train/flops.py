"""Counts the FLOPs of a step from the config: the model's, and those of recomputation."""

from collections.abc import Mapping
from typing import NamedTuple

from omni_jax.modalities.device import Flops, swiglu_weights
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.model import ModelConfig
from omni_jax.nn.decoder import Remat
from omni_jax.types import RowBudget

# FLOPs of an update, relative to its forward pass: a matmul has two gradients, each as
# much work as the matmul itself.
FORWARD_AND_BACKWARD = 3


class StepFlops(NamedTuple):
  """FLOPs of a forward pass on a full batch, by part of the model.

  A weight costs two FLOPs for each position that it is applied to.

  Attributes:
    layers: matrices of the decoder.
    attention: its two products between positions; each position counts all L positions
      of its row, though half of them are masked.
    text: the text head.
    media: embeddings, heads and autoencoders of the media, for their own pieces.
  """

  layers: float
  attention: float
  text: float
  media: Mapping[str, Flops]

  @property
  def model(self) -> float:
    """FLOPs of an update, the numerator of MFU.

    They follow the convention of PaLM (arXiv 2204.02311, appendix B).
    """
    trained = self.layers + self.attention + self.text
    trained += sum(flops.embed + flops.head for flops in self.media.values())
    frozen = sum(flops.autoencoder for flops in self.media.values())
    return FORWARD_AND_BACKWARD * trained + frozen

  def executed(self, remat: Remat) -> float:
    """Returns the FLOPs of an update, including what `remat` computes again."""
    recomputed = {
      Remat.NONE: 0.0,
      Remat.DOTS: self.attention,
      Remat.ATTENTION: self.layers,
    }
    return self.model + recomputed.get(remat, self.layers + self.attention)


def step_flops(c: ModelConfig, budget: RowBudget) -> StepFlops:
  """Returns the FLOPs of a forward pass for full rows and full streams."""
  d = c.decoder
  tokens = budget.rows * budget.length
  q = d.heads * d.head_dim
  kv = d.kv_heads * d.head_dim
  layer = d.width * (q + 2 * kv) + q * d.width + d.width * d.experts
  layer += swiglu_weights(d.width, d.expert_hidden) * d.top_k
  layer += swiglu_weights(d.width, d.shared_hidden)
  vocab = Tokenizer(c.tokenizer).vocab_size
  media = {
    name: c.tables.devices[name].flops(c.parts(name), budget) for name in c.media
  }
  return StepFlops(
    layers=2.0 * tokens * d.layers * layer,
    attention=4.0 * tokens * d.layers * q * budget.length,
    text=2.0 * tokens * d.width * vocab,
    media=media,
  )
