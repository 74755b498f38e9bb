"""Randomly augments the media of user messages; media to be written stay unchanged."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from omni_jax.modalities.hosts import Hosts
from omni_jax.sequence.example import Example, Part


def augment_example(
  example: Example, strengths: Mapping[str, Any], hosts: Hosts, rng: np.random.Generator
) -> Example:
  """Returns the example with the media of user messages changed at random.

  Plain examples stay as they are.

  Args:
    strengths: augmentation config of each medium, by name (see its `augment.py`).
  """

  def augment_part(part: Part) -> Part:
    if part['type'] not in strengths:
      return part
    host = hosts[part['type']]
    payload = host.augment(part[host.key], strengths[host.name], rng)
    return {**part, host.key: payload}

  if 'messages' not in example:
    return example
  messages = []
  for message in example['messages']:
    content = message['content']
    if message['role'] == 'user':
      content = [augment_part(part) for part in content]
    messages.append({**message, 'content': content})
  return {**example, 'messages': messages}
