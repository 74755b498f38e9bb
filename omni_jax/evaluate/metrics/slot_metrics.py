"""Spoken orders understood: which intent, and which slots with which values, as lines of `data.ready.barista`."""

from collections.abc import Sequence

from omni_jax.data.sources.ready.barista import parse_order
from omni_jax.evaluate.metrics.scores import share
from omni_jax.evaluate.metrics.text_metrics import tidy


def slot_scores(
  references: Sequence[str], texts: Sequence[str]
) -> dict[str, float | None]:
  """Shares of right intents and of orders right as a whole; F1 of (slot, value) pairs over all orders together.

  Case, spaces and the order of slots are no matter. F1 is None where no text has a slot.
  """
  pairs = [
    (parse_order(tidy(a)), parse_order(tidy(b)))
    for a, b in zip(references, texts, strict=True)
  ]
  hits = sum(len(a.slots.items() & b.slots.items()) for a, b in pairs)
  slots = sum(len(a.slots) + len(b.slots) for a, b in pairs)
  return {
    'intent_accuracy': share([a.intent == b.intent for a, b in pairs]),
    'order_accuracy': share([a == b for a, b in pairs]),
    'slot_f1': 2 * hits / slots if slots else None,
  }
