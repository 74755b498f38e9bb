"""Model FLOPs of a step, counted from the configuration: the numerator of MFU."""

import jax

from omni_jax.modalities.image.head import Denoiser
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.model import OmniConfig
from omni_jax.types import RowBudget

# Dense peak FLOP/s of one device: bf16 of the vendors' data sheets for accelerators; for a CPU device half of the
# 120 GFLOP/s fp32 that two cores of the README's machine are said to reach. MFU is no better than this figure.
PEAK = {'cpu': 60e9, 'TPU v4': 275e12, 'TPU v5 lite': 197e12, 'TPU v5p': 459e12, 'TPU v6 lite': 918e12,
        'NVIDIA H100': 989e12, 'NVIDIA H200': 989e12}


def peak_flops(device: jax.Device) -> float | None:
  """Peak of a device by its kind; None where it is not known."""
  return next((peak for name, peak in PEAK.items() if device.device_kind.startswith(name)), None)


def _swiglu(width: int, hidden: int) -> int:
  return 3 * width * hidden


def _attention(width: int, q: int, kv: int) -> int:
  return width * (q + 2 * kv) + q * width


def omni_step_flops(c: OmniConfig, budget: RowBudget) -> float:
  """FLOPs of one update: 6 per active weight and position, plus attention's products; heads at their own positions.

  Convention of PaLM (arXiv 2204.02311, appendix B), counted for full rows and full head budgets.
  """
  d, rows = c.decoder, budget.rows
  tokens = rows * budget.length
  q, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
  layer = _attention(d.width, q, kv) + d.width * d.experts
  layer += _swiglu(d.width, d.expert_hidden) * d.top_k + _swiglu(d.width, d.shared_hidden)
  per_token = d.layers * layer + d.width * Tokenizer(c.tokenizer).vocab_size
  total = tokens * (6 * per_token + 12 * d.layers * q * budget.length)
  image, t = c.media.image, c.dit
  patches = rows * budget.drawn * image.patches * t.noises
  if t.denoiser == Denoiser.DIT:
    block = 4 * t.width**2 + _swiglu(t.width, t.hidden)
    ends = t.width * (2 * image.values + d.width)
    total += patches * (6 * (t.layers * block + ends) + 12 * t.layers * t.width * image.patches)
  else:
    total += patches * 6 * 2 * d.width * image.values
  h = c.codec_head
  codes = rows * budget.spoken_frames * c.codec.codebooks
  block = 4 * h.width**2 + _swiglu(h.width, h.hidden)
  total += codes * 6 * (h.layers * block + h.width * c.codec.entries)
  return float(total)
