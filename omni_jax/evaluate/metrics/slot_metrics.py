"""Scores how well spoken orders are understood: their intent, and slots with values.

The texts are lines as `data.sources.ready.barista` writes them.
"""

from collections.abc import Sequence

from omni_jax.data.sources.ready.barista import parse_order
from omni_jax.evaluate.metrics.scores import share
from omni_jax.evaluate.metrics.text_metrics import tidy


def slot_scores(
  references: Sequence[str], texts: Sequence[str]
) -> dict[str, float | None]:
  """Returns the shares of right intents and of fully right orders, and the slot F1.

  F1 is of (slot, value) pairs over all orders together; it is None where no text has a
  slot. Case, spaces and the order of slots do not matter.
  """
  same_intent: list[bool] = []
  same_order: list[bool] = []
  hits = 0
  slots = 0
  for reference, text in zip(references, texts, strict=True):
    expected = parse_order(tidy(reference))
    order = parse_order(tidy(text))
    same_intent.append(expected.intent == order.intent)
    same_order.append(expected == order)
    hits += len(expected.slots.items() & order.slots.items())
    slots += len(expected.slots) + len(order.slots)
  return {
    'intent_accuracy': share(same_intent),
    'order_accuracy': share(same_order),
    'slot_f1': 2 * hits / slots if slots else None,
  }
