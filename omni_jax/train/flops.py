"""FLOPs of a step, counted from the configuration: those that the model needs, and those that are computed again."""

from collections.abc import Mapping
from typing import NamedTuple

from omni_jax.modalities.device import Flops, swiglu_weights
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.model import ModelConfig
from omni_jax.nn.decoder import Remat
from omni_jax.types import RowBudget

TRAINED = 3  # a product has two gradients, each as much work as itself


class StepFlops(NamedTuple):
  """FLOPs of a forward pass on a full batch, 2 per weight and position that it acts on, by part.

  Attributes:
    layers: matrices of the decoder.
    attention: its two products between positions, all L of a row for each, though half are masked.
    text: of the text head.
    media: embeddings, heads and autoencoders of the media, at their own pieces.
  """

  layers: float
  attention: float
  text: float
  media: Mapping[str, Flops]

  @property
  def model(self) -> float:
    """Of an update, the numerator of MFU: the convention of PaLM (arXiv 2204.02311, appendix B)."""
    trained = self.layers + self.attention + self.text
    trained += sum(flops.embed + flops.head for flops in self.media.values())
    still = sum(flops.autoencoder for flops in self.media.values())
    return TRAINED * trained + still

  def executed(self, remat: Remat) -> float:
    """Of an update that computes the decoder's forward pass again, or those of its products that are not kept."""
    again = {Remat.NONE: 0.0, Remat.DOTS: self.attention, Remat.ATTENTION: self.layers}
    return self.model + again.get(remat, self.layers + self.attention)


def step_flops(c: ModelConfig, budget: RowBudget) -> StepFlops:
  """Returns the FLOPs for full rows and full streams."""
  d, tokens = c.decoder, budget.rows * budget.length
  q, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
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
