"""Prompts the model in all nine directions and scores its replies."""

from collections.abc import Sequence
import time
from typing import Any, NamedTuple

from omni_jax.evaluate.judges import Judges
from omni_jax.evaluate.limits import Limits, Log
from omni_jax.evaluate.metrics.scores import accuracy, share
from omni_jax.evaluate.metrics.text_metrics import named_digit
from omni_jax.evaluate.tasks import prompts as prompts_lib
from omni_jax.evaluate.tasks import scoring
from omni_jax.evaluate.tasks.prompts import (
  Direction,
  DIRECTIONS,
  MAIN,
  Material,
  Prompt,
  WANT,
)
from omni_jax.evaluate.tasks.scoring import RealData, Verdict
from omni_jax.generate.api import TrainedModel
from omni_jax.modalities.contract import Part
from omni_jax.modalities.text.tokenizer import ANY


class Outcome(NamedTuple):
  """The outcome of one direction, for metrics and report.

  Attributes:
    direction: the direction.
    prompts: its prompts.
    replies: the reply to each prompt.
    verdicts: the verdict on each reply.
    seconds: time that generating and judging took.
  """

  direction: Direction
  prompts: list[Prompt]
  replies: list[list[Part]]
  verdicts: list[Verdict]
  seconds: float


def ask(
  trained: TrainedModel,
  direction: Direction,
  material: Material,
  limits: Limits,
  *,
  seed: int,
  judges: Judges,
  real: RealData,
) -> Outcome:
  """Generates and judges the replies of one direction."""
  began = time.monotonic()
  n = limits.n_images if direction.name == 'text_to_image' else limits.n
  prompts = prompts_lib.build(direction, material, n=n, seed=seed)
  examples = [prompt.example for prompt in prompts]
  want = WANT[direction.target]
  replies = trained.generate_batch(examples, want=want, seed=seed, **limits.sampling)
  verdicts = scoring.judge(direction, prompts, replies, judges, real)
  return Outcome(direction, prompts, replies, verdicts, time.monotonic() - began)


def ask_all(
  trained: TrainedModel,
  material: Material,
  limits: Limits,
  *,
  seed: int,
  judges: Judges,
  real: RealData,
  log: Log = print,
) -> list[Outcome]:
  """Returns the outcomes of all nine directions, and logs a line for each."""
  outcomes: list[Outcome] = []
  for direction in DIRECTIONS:
    outcome = ask(
      trained, direction, material, limits, seed=seed, judges=judges, real=real
    )
    outcomes.append(outcome)
    right = [verdict.digit_right for verdict in outcome.verdicts]
    log(
      f'evaluate: {direction.name}: {share(right):.1%} of {len(right)} replies right, '
      f'{outcome.seconds:.1f} s'
    )
  return outcomes


def direction_metrics(
  outcome: Outcome, judges: Judges, real: RealData
) -> dict[str, Any]:
  """Returns the direction's entry in metrics.json.

  The scores of a second group of prompts are nested under the name of the group.
  """
  groups: dict[str, list[Verdict]] = {}
  for prompt, verdict in zip(outcome.prompts, outcome.verdicts, strict=True):
    groups.setdefault(prompt.group, []).append(verdict)
  main = groups.pop(MAIN)
  entry = scoring.score(outcome.direction, main, judges)
  if outcome.direction.target == 'image':
    entry |= scoring.score_novelty(
      outcome.prompts, outcome.replies, outcome.verdicts, real
    )
  entry['confusion'] = scoring.digit_confusion(main)
  for group, verdicts in groups.items():
    entry[group] = scoring.score(outcome.direction, verdicts, judges)
  entry['seconds'] = round(outcome.seconds, 2)
  return entry


class FreeReply(NamedTuple):
  """A reply whose modalities the model chose.

  Attributes:
    prompt: the prompt.
    reply: the parts of the reply.
    complete: whether it holds text, an image and audio.
    right: whether it has parts, and all of them show the digit of the prompt.
  """

  prompt: Prompt
  reply: list[Part]
  complete: bool
  right: bool


def ask_any(
  trained: TrainedModel,
  material: Material,
  limits: Limits,
  *,
  seed: int,
  judges: Judges,
  real: RealData,
) -> list[FreeReply]:
  """Generates and judges replies whose modalities the model chooses itself."""
  prompts = prompts_lib.replies(material, n=limits.n_any, seed=seed)
  examples = [prompt.example for prompt in prompts]
  replies = trained.generate_batch(examples, want=ANY, seed=seed, **limits.sampling)
  free: list[FreeReply] = []
  for prompt, reply in zip(prompts, replies, strict=True):
    kinds = {part.type for part in reply}
    complete = kinds >= set(WANT.values())
    digits = {_digit_of(part, judges, real) for part in reply}
    free.append(FreeReply(prompt, list(reply), complete, digits == {prompt.digit}))
  return free


def free_metrics(replies: Sequence[FreeReply]) -> dict[str, Any]:
  """Returns the share of free replies whose parts are all right, as an accuracy.

  `complete` is the share of those that use all three modalities.
  """
  metrics = accuracy([reply.right for reply in replies])
  metrics['complete'] = share([reply.complete for reply in replies])
  return metrics


def _digit_of(part: Part, judges: Judges, real: RealData) -> int:
  """Returns the digit that a part of a reply names, draws or says."""
  if part.type == 'text':
    return named_digit(part.text, real.words).digit
  if part.type == 'image':
    return judges.image([part.pixels])[0]
  return judges.speech([scoring.wave_of(part, real.rate)]).digit[0]
