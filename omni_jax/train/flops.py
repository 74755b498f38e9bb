"""FLOPs of a step, counted from the configuration: those that the model needs, and those that are computed again."""

from typing import NamedTuple

from omni_jax.modalities.audio.embed import Hearing
from omni_jax.modalities.image.head import Denoiser
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.model import OmniConfig
from omni_jax.nn.decoder import Remat
from omni_jax.types import RowBudget

TRAINED = 3  # a product has two gradients, each as much work as itself


class StepFlops(NamedTuple):
  """FLOPs of a forward pass on a full batch, 2 per weight and position that it acts on, by part.

  Attributes:
    layers: matrices of the decoder.
    attention: its two products between positions, all L of a row for each, though half are masked.
    text, image, audio: heads, at their own positions.
    media: embeddings of images and sounds.
    codec: the frozen codec, which has no gradient.
  """

  layers: float
  attention: float
  text: float
  image: float
  audio: float
  media: float
  codec: float

  @property
  def model(self) -> float:
    """Of an update, the numerator of MFU: the convention of PaLM (arXiv 2204.02311, appendix B)."""
    return TRAINED * (sum(self) - self.codec) + self.codec

  def executed(self, remat: Remat) -> float:
    """Of an update that computes the decoder's forward pass again, or those of its products that are not kept."""
    again = {Remat.NONE: 0.0, Remat.DOTS: self.attention, Remat.ATTENTION: self.layers}
    return self.model + again.get(remat, self.layers + self.attention)


def _swiglu(width: int, hidden: int) -> int:
  return 3 * width * hidden


def _attention(width: int, q: int, kv: int) -> int:
  return width * (q + 2 * kv) + q * width


def step_flops(c: OmniConfig, budget: RowBudget) -> StepFlops:
  """For full rows and full budgets of the heads."""
  d, tokens = c.decoder, budget.rows * budget.length
  q, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
  layer = _attention(d.width, q, kv) + d.width * d.experts
  layer += _swiglu(d.width, d.expert_hidden) * d.top_k + _swiglu(
    d.width, d.shared_hidden
  )
  return StepFlops(
    layers=2.0 * tokens * d.layers * layer,
    attention=4.0 * tokens * d.layers * q * budget.length,
    text=2.0 * tokens * d.width * Tokenizer(c.tokenizer).vocab_size,
    image=_image_head(c, budget),
    audio=_codec_head(c, budget),
    media=_media(c, budget),
    codec=_codec(c, budget),
  )


def _image_head(c: OmniConfig, budget: RowBudget) -> float:
  image, t = c.media.image, c.dit
  images = budget.rows * budget.drawn * t.noises
  if t.denoiser == Denoiser.DECODER:
    return 4.0 * images * image.patches * c.decoder.width * image.values
  patch = t.layers * (4 * t.width**2 + _swiglu(t.width, t.hidden)) + t.width * (
    2 * image.values + c.decoder.width
  )
  whole = (
    t.layers * 6 * t.width**2 + 2 * t.width**2 + _swiglu(t.width, t.width)
  )  # of its time and pooled condition
  return (
    2.0
    * images
    * (image.patches * (patch + t.layers * 2 * t.width * image.patches) + whole)
  )


def _codec_head(c: OmniConfig, budget: RowBudget) -> float:
  h, books = c.codec_head, c.codec.codebooks
  code = (
    h.layers * (4 * h.width**2 + _swiglu(h.width, h.hidden) + 2 * h.width * books)
    + h.width * c.codec.entries
  )
  return (
    2.0
    * budget.rows
    * budget.spoken_frames
    * (books * code + c.decoder.width * h.width)
  )


def _media(c: OmniConfig, budget: RowBudget) -> float:
  image, e, d = c.media.image, c.image_embed, c.decoder.width
  block = 4 * d**2 + _swiglu(d, e.hidden) + 2 * d * image.patches
  patches = (
    budget.rows
    * image.patches
    * ((budget.seen + budget.drawn) * image.values * d + budget.seen * e.layers * block)
  )
  audio, a = c.media.audio, c.audio_embed
  heard = (
    a.hidden * (audio.mels * audio.mel_hops + d) if a.hearing == Hearing.MEL else 0
  )
  return 2.0 * (patches + budget.rows * budget.heard_frames * heard)


def _codec(c: OmniConfig, budget: RowBudget) -> float:
  audio, k = c.media.audio, c.codec
  hears = c.audio_embed.hearing == Hearing.CODES
  patch = (2 * audio.frame + audio.mel_hops * audio.mels) // k.subframes * k.width
  patch += k.layers * (4 * k.width**2 + _swiglu(k.width, k.hidden)) + k.width * k.latent
  return (
    2.0
    * budget.rows
    * (budget.spoken_frames + hears * budget.heard_frames)
    * k.subframes
    * patch
  )
