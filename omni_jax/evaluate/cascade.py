"""python -m omni_jax.evaluate.cascade --workdir=DIR [--step=N] [--n=400]

What is lost when speech answers speech through text alone. The same model and the same prompts (known voices, new
takes, another language asked for) twice: directly, and as a cascade that first writes what it heard and then reads
that text aloud. Text holds neither who spoke nor how, so the cascade's voice is drawn by lot.
"""

import argparse
from collections.abc import Iterable, Sequence
import json
import sys
from typing import Any

from absl import logging
import numpy as np

from omni_jax.data.sources.digits import load_digits
from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.table import DIRECTIONS, source_of
from omni_jax.errors import run_command, UserError
from omni_jax.evaluate import judges
from omni_jax.evaluate.metrics import speech_metrics
from omni_jax.evaluate.metrics.scores import share
from omni_jax.evaluate.tasks import prompts, scoring
from omni_jax.evaluate.tasks.prompts import Direction, Prompt

SPEECH = Direction('speech', 'speech')


def compare(
  trained: Any, *, n: int, seed: int = 0
) -> dict[str, dict[str, float | None]]:
  """Accuracy of digit, language and voice, and the correlation of log pitch with what was heard; both ways."""
  digits = load_digits(trained.config.data)
  rate = trained.model_config.media['audio'].rate
  fitted = judges.fit(digits, rate=rate, seed=seed)
  real = scoring.Real(
    DIGIT_WORDS, digits.train_images, digits.test_images, digits.test_labels, rate
  )
  material = prompts.Material(
    DIGIT_WORDS,
    digits.test_images,
    digits.test_labels,
    digits.test_clips,
    digits.take_clips,
  )
  asked = [
    prompt
    for prompt in prompts.build(SPEECH, material, n=n, seed=seed)
    if prompt.group == 'main'
  ]
  found = {
    'direct': trained.generate_batch(
      [prompt.example for prompt in asked], want='audio', seed=seed
    ),
    'cascade': through_text(trained, asked, material.voices, seed=seed),
  }
  heard = [prompt.source['wave'] for prompt in asked]
  coded = trained.decode_payloads('codec', trained.encode_payloads('codec', heard))
  return {
    name: _reply_scores(asked, replies, fitted, real) for name, replies in found.items()
  } | {
    'judges on real test data': {
      key: fitted.real[key] for key in ('digit', 'language', 'voice')
    },
    # What the codec loses no answer can keep.
    'codec alone': {
      'pitch correlation': _pitch_correlation(zip(heard, coded, strict=True), rate)
    },
  }


def through_text(
  trained: Any, asked: Sequence[Prompt], voices: Sequence[str], *, seed: int
) -> list[list[Any]]:
  """Speech -> text in the language asked for -> speech, two questions to the model."""
  rng = np.random.default_rng(seed)
  writing = [
    _asking(prompt.source, language=prompt.language, task='write') for prompt in asked
  ]
  written = trained.generate_batch(writing, want='text', seed=seed)
  words = [
    ' '.join(part.text for part in reply if part.type == 'text') for reply in written
  ]
  speaking = [
    _asking(
      {'type': 'text', 'text': text or ' '},
      language=prompt.language,
      task='speak',
      voice=voices[rng.integers(len(voices))],
    )
    for prompt, text in zip(asked, words, strict=True)
  ]
  return trained.generate_batch(speaking, want='audio', seed=seed)


def _asking(part: dict[str, Any], **controls: str) -> dict[str, Any]:
  return {
    'messages': [
      {'role': 'user', 'content': [part]},
      {'role': 'assistant', **controls, 'content': []},
    ]
  }


def _reply_scores(
  asked: Sequence[Prompt],
  replies: Sequence[Sequence[Any]],
  fitted: judges.Judges,
  real: scoring.Real,
) -> dict[str, float | None]:
  verdicts = scoring.judge(SPEECH, asked, replies, fitted, real)
  pairs = [
    (prompt.source['wave'], scoring.wave_of(part, real.rate))
    for prompt, reply in zip(asked, replies, strict=True)
    if (part := scoring.part_of(reply, 'audio'))
  ]
  return {
    'digit': share([v.digit == p.digit for v, p in zip(verdicts, asked, strict=True)]),
    'language': share([bool(v.language_right) for v in verdicts]),
    'voice': share([bool(v.voice_right) for v in verdicts]),
    'pitch correlation': _pitch_correlation(pairs, real.rate),
  }


def _pitch_correlation(
  pairs: Iterable[tuple[np.ndarray, np.ndarray]], rate: int
) -> float | None:
  """Of the log pitch of two waves each, over those pairs that have one."""
  pitches = [
    tuple(speech_metrics.pitch(wave, rate=rate) for wave in pair) for pair in pairs
  ]
  known = np.log([pair for pair in pitches if None not in pair])
  return float(np.corrcoef(known.T)[0, 1]) if len(known) > 2 else None


def main(arguments: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.evaluate.cascade',
    description=__doc__.split('\n')[2],
    allow_abbrev=False,
  )
  parser.add_argument(
    '--workdir', required=True, help='folder of a run on the digits data'
  )
  parser.add_argument('--step', type=int, help='checkpoint; default: the last')
  parser.add_argument('--n', type=int, default=400, help='prompts')
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args(arguments)
  logging.set_verbosity(logging.ERROR)  # Orbax reports every folder that it opens
  from omni_jax.evaluate.run import (
    restore,
  )  # only now: a mistake above is answered at once

  trained = restore(flags.workdir, step=flags.step)
  if source_of(trained.config.data).evaluation != DIRECTIONS:
    raise UserError(
      f'--workdir={flags.workdir}: its data.source is {trained.config.data.source!r}, the cascade '
      "is compared on 'digits'"
    )
  print(
    json.dumps({'n': flags.n, **compare(trained, n=flags.n, seed=flags.seed)}, indent=1)
  )


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
