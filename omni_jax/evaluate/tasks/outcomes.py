"""Asks the model in all nine directions and scores what comes back."""

from collections.abc import Callable, Sequence
import time
from typing import Any, NamedTuple

from omni_jax.evaluate.judges import Judges
from omni_jax.evaluate.limits import Limits
from omni_jax.evaluate.metrics.scores import accuracy, share
from omni_jax.evaluate.metrics.text_metrics import name_of
from omni_jax.evaluate.tasks import prompts as prompts_lib
from omni_jax.evaluate.tasks import scoring
from omni_jax.evaluate.tasks.prompts import (
  Direction,
  DIRECTIONS,
  Material,
  Prompt,
  WANT,
)


class Outcome(NamedTuple):
  """Everything about one direction that metrics and report need."""

  direction: Direction
  prompts: list[Prompt]
  replies: list[list[Any]]
  verdicts: list[scoring.Verdict]
  seconds: float


def ask(
  trained: Any,
  direction: Direction,
  material: Material,
  limits: Limits,
  *,
  seed: int,
  judges: Judges,
  real: scoring.Real,
) -> Outcome:
  """Generates and judges the replies of one direction."""
  began = time.monotonic()
  n = limits.n_images if direction.name == 'text_to_image' else limits.n
  prompts = prompts_lib.build(direction, material, n=n, seed=seed)
  replies = trained.generate_batch(
    [prompt.example for prompt in prompts],
    want=WANT[direction.target],
    seed=seed,
    **limits.sampling,
  )
  verdicts = scoring.judge(direction, prompts, replies, judges, real)
  return Outcome(direction, prompts, replies, verdicts, time.monotonic() - began)


def ask_all(
  trained: Any,
  material: Material,
  limits: Limits,
  *,
  seed: int,
  judges: Judges,
  real: scoring.Real,
  log: Callable[[str], None] = print,
) -> list[Outcome]:
  """All nine; one line each as it is done."""
  outcomes = []
  for direction in DIRECTIONS:
    outcomes.append(
      ask(trained, direction, material, limits, seed=seed, judges=judges, real=real)
    )
    right = [
      v.digit == p.digit
      for v, p in zip(outcomes[-1].verdicts, outcomes[-1].prompts, strict=True)
    ]
    log(
      f'evaluate: {direction.name} {share(right):.1%} of {len(right)} in {outcomes[-1].seconds:.1f} s'
    )
  return outcomes


def direction_metrics(outcome: Outcome, judges: Judges, real: scoring.Real) -> dict:
  """The direction's entry in metrics.json; a set of voices that is reported beside the main one is nested."""
  direction, prompts, replies, verdicts, seconds = outcome
  groups = dict.fromkeys(prompt.group for prompt in prompts)
  members = {
    group: [k for k, prompt in enumerate(prompts) if prompt.group == group]
    for group in groups
  }
  scores = {
    group: scoring.score(
      direction, [prompts[k] for k in ks], [verdicts[k] for k in ks], judges
    )
    for group, ks in members.items()
  }
  entry = scores.pop('main')
  if direction.target == 'image':
    entry |= scoring.score_novelty(prompts, replies, verdicts, real)
  main = members['main']
  entry['confusion'] = scoring.table(
    [prompts[k] for k in main], [verdicts[k] for k in main]
  )
  return entry | scores | {'seconds': round(seconds, 2)}


class FreeReply(NamedTuple):
  prompt: Prompt
  reply: list[Any]
  complete: bool  # holds text, image and audio
  agreed: bool  # all that it holds names the digit of the prompt


def ask_any(
  trained: Any,
  material: Material,
  limits: Limits,
  *,
  seed: int,
  judges: Judges,
  real: scoring.Real,
) -> list[FreeReply]:
  """Replies whose modalities the model chooses itself."""
  prompts = prompts_lib.replies(material, n=limits.n_any, seed=seed)
  replies = trained.generate_batch(
    [prompt.example for prompt in prompts], want='any', seed=seed, **limits.sampling
  )
  return [
    FreeReply(
      prompt,
      list(reply),
      {part.type for part in reply} >= set(WANT.values()),
      bool(reply) and _digits_named(reply, judges, real) == {prompt.digit},
    )
    for prompt, reply in zip(prompts, replies, strict=True)
  ]


def free_metrics(replies: Sequence[FreeReply]) -> dict:
  """Share of free replies that are right in all their parts, and of those that use all three modalities."""
  return accuracy([reply.agreed for reply in replies]) | {
    'complete': share([reply.complete for reply in replies])
  }


def _digits_named(reply: Sequence[Any], judges: Judges, real: scoring.Real) -> set[int]:
  """Every digit that the parts of a reply name, draw or say."""
  name = {
    'text': lambda part: name_of(part.text, real.words).digit,
    'image': lambda part: judges.image([part.pixels])[0],
    'audio': lambda part: judges.speech([scoring.wave_of(part, real.rate)]).digit[0],
  }
  return {name[part.type](part) for part in reply}
