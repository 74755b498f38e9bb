"""Augmentation of media that are only read, on the fly. What the model is to write stays as it is."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from omni_jax.modalities.hosts import Hosts
from omni_jax.sequence.example import Example


def augmented(
  example: Example, changes: Mapping[str, Any], hosts: Hosts, rng: np.random.Generator
) -> Example:
  """Returns the example with what users show changed at random; plain examples stay as they are.

  Args:
    changes: by medium, how much it changes (see the medium's `augment.py`).
  """

  def changed(part: dict[str, Any]) -> dict[str, Any]:
    if part['type'] not in changes:
      return part
    host = hosts[part['type']]
    payload = host.augmented(part[host.key], changes[host.name], rng)
    return {**part, host.key: payload}

  def of_message(message: dict[str, Any]) -> dict[str, Any]:
    if message['role'] != 'user':
      return message
    return {**message, 'content': [changed(part) for part in message['content']]}

  if 'messages' not in example:
    return example
  return {**example, 'messages': [of_message(each) for each in example['messages']]}
