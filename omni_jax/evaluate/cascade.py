"""Measures what is lost when speech answers speech through text alone.

python -m omni_jax.evaluate.cascade --workdir=DIR [--step=N] [--n=400] [--seed=N]

The same model answers the same spoken prompts (new takes of known voices, another
language requested) twice: directly, and as a cascade that first writes down what it
heard and then reads that text aloud. Text tells neither who spoke nor how, so the
cascade's voice is chosen at random.
"""

import argparse
from collections.abc import Sequence
import json
import sys
from typing import Any

from absl import logging
import numpy as np

from omni_jax.data.sources.digits import load_digits
from omni_jax.data.sources.table import DIRECTIONS, source_of
from omni_jax.errors import run_command, UserError
from omni_jax.evaluate.judges import fit_judges, Judges
from omni_jax.evaluate.limits import seed_of
from omni_jax.evaluate.metrics import speech_metrics
from omni_jax.evaluate.metrics.scores import share
from omni_jax.evaluate.tasks import prompts as prompts_lib
from omni_jax.evaluate.tasks import scoring
from omni_jax.evaluate.tasks.prompts import Direction, MAIN, Prompt
from omni_jax.evaluate.tasks.scoring import RealData
from omni_jax.generate.prompt import chat
from omni_jax.modalities.contract import Part
from omni_jax.paths import checked

SPEECH = Direction('speech', 'speech')

Scores = dict[str, float | None]


def compare(trained: Any, *, n: int, seed: int) -> dict[str, Scores]:
  """Returns the scores of direct answers, of the cascade, of the judges and the codec.

  Scores are the accuracies of digit, language and voice, and the correlation of the log
  pitch of replies with that of the prompts.

  Args:
    trained: a restored run (`TrainedModel`) on the digits data.
    n: number of prompts.
    seed: seed of prompts and sampling.
  """
  # Imported only now: mistakes in flags are reported without waiting for jax.
  from omni_jax.modalities.audio.device import CODEC

  digits = load_digits(trained.config.data)
  rate = trained.model_config.media['audio'].rate
  judges = fit_judges(digits, rate=rate, seed=seed)
  real = scoring.real_data(digits, rate)
  material = prompts_lib.material_of(digits)
  prompts = prompts_lib.build(SPEECH, material, n=n, seed=seed)
  prompts = [prompt for prompt in prompts if prompt.group == MAIN]
  examples = [prompt.example for prompt in prompts]
  direct = trained.generate_batch(examples, want='audio', seed=seed)
  cascade = through_text(trained, prompts, material.voices, seed=seed)
  waves = [prompt.source['wave'] for prompt in prompts]
  codes = trained.encode_payloads(CODEC.name, waves)
  decoded = trained.decode_payloads(CODEC.name, codes)
  codec_correlation = _pitch_correlation(waves, decoded, rate)
  return {
    'direct': _reply_scores(prompts, direct, judges, real),
    'cascade': _reply_scores(prompts, cascade, judges, real),
    'judges on real test data': {
      name: judges.real[name] for name in ('digit', 'language', 'voice')
    },
    # No answer can keep what the codec loses.
    'codec alone': {'pitch correlation': codec_correlation},
  }


def through_text(
  trained: Any, prompts: Sequence[Prompt], voices: Sequence[str], *, seed: int
) -> list[list[Part]]:
  """Returns spoken replies that the model gives in two steps: speech -> text -> speech.

  Args:
    trained: a restored run (`TrainedModel`).
    prompts: spoken prompts; the text is in the language that each requests.
    voices: voices, of which each reply gets one at random.
    seed: seed of voices and sampling.
  """
  rng = np.random.default_rng(seed)
  writing: list[dict[str, Any]] = []
  for prompt in prompts:
    writing.append(chat([prompt.source], 'text', language=prompt.language))
  transcripts = trained.generate_batch(writing, want='text', seed=seed)
  speaking: list[dict[str, Any]] = []
  for prompt, transcript in zip(prompts, transcripts, strict=True):
    text = scoring.text_of(transcript) or ' '
    voice = voices[int(rng.integers(len(voices)))]
    speaking.append(chat(text, 'audio', language=prompt.language, voice=voice))
  return trained.generate_batch(speaking, want='audio', seed=seed)


def _reply_scores(
  prompts: Sequence[Prompt],
  replies: Sequence[Sequence[Part]],
  judges: Judges,
  real: RealData,
) -> Scores:
  verdicts = scoring.judge(SPEECH, prompts, replies, judges, real)
  heard: list[np.ndarray] = []
  spoken: list[np.ndarray] = []
  for prompt, reply in zip(prompts, replies, strict=True):
    part = scoring.part_of(reply, 'audio')
    if part:
      heard.append(prompt.source['wave'])
      spoken.append(scoring.wave_of(part, real.rate))
  return {
    'digit': share([verdict.digit_right for verdict in verdicts]),
    'language': share([bool(verdict.language_right) for verdict in verdicts]),
    'voice': share([bool(verdict.voice_right) for verdict in verdicts]),
    'pitch correlation': _pitch_correlation(heard, spoken, real.rate),
  }


def _pitch_correlation(
  left: Sequence[np.ndarray], right: Sequence[np.ndarray], rate: int
) -> float | None:
  """Returns the correlation of the log pitch of two waves, over pairs of waves.

  Pairs in which a wave has no pitch are left out; None where too few remain.
  """
  known: list[list[float]] = []
  for pair in zip(left, right, strict=True):
    pitches = [speech_metrics.pitch(wave, rate=rate) for wave in pair]
    voiced = [pitch for pitch in pitches if pitch is not None]
    if len(voiced) == len(pitches):
      known.append(voiced)
  if len(known) <= 2:
    return None
  return float(np.corrcoef(np.log(known).T)[0, 1])


def main(arguments: Sequence[str]) -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.evaluate.cascade',
    description='Measures what is lost when speech answers speech through text alone.',
    allow_abbrev=False,
  )
  parser.add_argument(
    '--workdir', required=True, help='folder of a run on the digits data'
  )
  parser.add_argument('--step', type=int, help='checkpoint; default: the last one')
  parser.add_argument('--n', type=int, default=400, help='number of prompts')
  parser.add_argument(
    '--seed',
    type=int,
    help="seed of prompts and sampling; default: the run's config.evaluate.seed",
  )
  flags = parser.parse_args(arguments)
  flags.workdir = checked(flags.workdir, '--workdir')
  logging.set_verbosity(logging.ERROR)  # Orbax reports every folder that it opens
  # Imported only now: mistakes above are reported at once, without waiting for jax.
  from omni_jax.evaluate.run import restore

  trained = restore(flags.workdir, step=flags.step)
  data = trained.config.data
  if source_of(data).evaluation != DIRECTIONS:
    raise UserError(
      f'--workdir={flags.workdir}: its data.source is {data.source!r}, but the cascade '
      "is measured on 'digits' only"
    )
  seed = seed_of(trained.config) if flags.seed is None else flags.seed
  scores = compare(trained, n=flags.n, seed=seed)
  print(json.dumps({'n': flags.n, **scores}, indent=1))


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
