"""The task 'directions': nine directions, free replies and the codec, on the digits."""

import time
from typing import Any

from omni_jax.data.sources.digits import load_digits
from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.errors import UserError
from omni_jax.evaluate import judges
from omni_jax.evaluate.limits import Limits, Log, subset
from omni_jax.evaluate.page import gallery
from omni_jax.evaluate.tasks import outcomes as outcomes_lib
from omni_jax.evaluate.tasks.codec_scores import codec_scores
from omni_jax.evaluate.tasks.measured import Measured
from omni_jax.evaluate.tasks.prompts import Material
from omni_jax.evaluate.tasks.scoring import Real


def measure(trained: Any, limits: Limits, *, seed: int, log: Log) -> Measured:
  """Measures all directions; the judges are fitted to real data first."""
  model_config = trained.model_config
  if missing := [name for name in ('image', 'audio') if name not in model_config.media]:
    raise UserError(
      f'the digits are asked for in every medium, this run has no {" and no ".join(missing)}: '
      'evaluate with --data=FILE.jsonl'
    )
  rate = model_config.media['audio'].rate
  digits = load_digits(trained.config.data)
  began = time.monotonic()
  fitted = judges.fit(digits, rate=rate, seed=seed)
  seconds = time.monotonic() - began
  log(f'evaluate: judges on real data {fitted.summary()} in {seconds:.1f} s')
  real = Real(
    DIGIT_WORDS, digits.train_images, digits.test_images, digits.test_labels, rate
  )
  material = Material(
    DIGIT_WORDS,
    digits.test_images,
    digits.test_labels,
    digits.test_clips,
    digits.take_clips,
  )
  outcomes = outcomes_lib.ask_all(
    trained, material, limits, seed=seed, judges=fitted, real=real, log=log
  )
  free = outcomes_lib.ask_any(
    trained, material, limits, seed=seed, judges=fitted, real=real
  )
  metrics = {
    'directions': {
      outcome.direction.name: outcomes_lib.direction_metrics(outcome, fitted, real)
      for outcome in outcomes
    },
    'any': outcomes_lib.free_metrics(free),
    'judges': fitted.real,
    'codec': codec_scores(
      trained,
      subset(digits.test_clips, limits.n_codec, seed),
      rate=rate,
      entries=model_config.autoencoders['codec'].entries,
      judge=fitted.speech,
    ),
  }
  return Measured(metrics, gallery.of_digits(outcomes, free, material, rate))
