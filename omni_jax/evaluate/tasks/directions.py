"""Implements the task 'directions': all directions, free replies and the codec."""

import time
from typing import Any

from omni_jax.data.sources.digits import load_digits
from omni_jax.errors import UserError
from omni_jax.evaluate.judges import fit_judges
from omni_jax.evaluate.limits import Limits, Log, subset
from omni_jax.evaluate.page import gallery
from omni_jax.evaluate.tasks import outcomes as outcomes_lib
from omni_jax.evaluate.tasks import predictions
from omni_jax.evaluate.tasks.codec_scores import codec_scores
from omni_jax.evaluate.tasks.prompts import material_of
from omni_jax.evaluate.tasks.scoring import real_data
from omni_jax.evaluate.tasks.task_result import TaskResult
from omni_jax.generate.api import TrainedModel


def measure(
  trained: TrainedModel, limits: Limits, *, seed: int, log: Log
) -> TaskResult:
  """Returns the scores of all directions; judges are fitted to real data first.

  Raises:
    UserError: if the run has no images or no audio.
  """
  model_config = trained.model_config
  missing = [name for name in ('image', 'audio') if name not in model_config.media]
  if missing:
    raise UserError(
      'the digits need text, image and audio, but this run has no '
      f'{" and no ".join(missing)}: evaluate with --data=FILE.jsonl'
    )
  rate = model_config.media['audio'].rate
  digits = load_digits(trained.config.data)
  began = time.monotonic()
  judges = fit_judges(digits, rate=rate, seed=seed)
  seconds = time.monotonic() - began
  log(
    f'evaluate: judges fitted in {seconds:.1f} s, accuracy on real test data: '
    f'{judges.summary()}'
  )
  real = real_data(digits, rate)
  material = material_of(digits)
  outcomes = outcomes_lib.ask_all(
    trained, material, limits, seed=seed, judges=judges, real=real, log=log
  )
  free = outcomes_lib.ask_any(
    trained, material, limits, seed=seed, judges=judges, real=real
  )
  directions: dict[str, Any] = {}
  for outcome in outcomes:
    name = outcome.direction.name
    directions[name] = outcomes_lib.direction_metrics(outcome, judges, real)
  codec = codec_scores(
    trained,
    subset(digits.test_clips, limits.n_codec, seed),
    rate=rate,
    judge=judges.speech,
  )
  metrics = {
    'directions': directions,
    'any': outcomes_lib.free_metrics(free),
    'judges': judges.real,
    'codec': codec,
  }
  shown = gallery.digits_gallery(outcomes, free, material, rate)
  return TaskResult(metrics, shown, predictions.of_directions(outcomes))
