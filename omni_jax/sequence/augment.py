"""Randomly augments the media of user messages; media to be written stay unchanged."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from omni_jax.modalities.hosts import Hosts
from omni_jax.sequence.example import Example, Part


def augment_example(
  example: Example, changes: Mapping[str, Any], hosts: Hosts, rng: np.random.Generator
) -> Example:
  """Returns the example with the media of user messages changed at random.

  Plain examples stay as they are.

  Args:
    changes: by medium, how much it changes (see the medium's `augment.py`).
  """

  def changed(part: Part) -> Part:
    if part['type'] not in changes:
      return part
    host = hosts[part['type']]
    payload = host.augment(part[host.key], changes[host.name], rng)
    return {**part, host.key: payload}

  if 'messages' not in example:
    return example
  messages = []
  for message in example['messages']:
    if message['role'] == 'user':
      content = [changed(part) for part in message['content']]
      message = {**message, 'content': content}
    messages.append(message)
  return {**example, 'messages': messages}
