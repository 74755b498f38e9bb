"""One evaluation, from a restored model to metrics.json and report.html."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from omni_jax.data.sources.digits import load_digits
from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.held_out import held_out
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.mixture import Mixture
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.data.sources.records import ArrayRecordExamples
from omni_jax.data.sources.table import check_tokenizers
from omni_jax.data.sources.text_file import TextFile
from omni_jax.data.sources.tfds import TfdsExamples
from omni_jax.errors import UserError
from omni_jax.evaluate import judges
from omni_jax.evaluate.page import gallery, report, runlog
from omni_jax.evaluate.page.gallery import Gallery
from omni_jax.evaluate.page.shown import Media
from omni_jax.evaluate.tasks import codec_eval, directions, example_files, labelled
from omni_jax.evaluate.tasks.directions import Limits
from omni_jax.evaluate.tasks.prompts import Material
from omni_jax.evaluate.tasks.scoring import Real
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.model import OmniConfig
from omni_jax.sequence.media import BadRecord

VERSION = 1
OTHER_SETTINGS = ('seed', 'targets')  # of config.evaluate, beside the limits
Log = Callable[[str], None]
Lines = JsonLines | TfdsExamples | ArrayRecordExamples | ReadySet | Mixture


class Measured(NamedTuple):
  metrics: dict[str, Any]
  gallery: Gallery


def limits_of(config: Any) -> Limits:
  """The limits in a run's `config.evaluate`, where it has that part.

  Raises:
    UserError: for a name that `Limits` does not have.
  """
  part = config.evaluate.to_dict() if config.get('evaluate') else {}
  for name in OTHER_SETTINGS:
    part.pop(name, None)
  known = [field.name for field in dataclasses.fields(Limits)]
  if unknown := sorted(set(part) - set(known)):
    raise UserError(
      f'config.evaluate: unknown {", ".join(unknown)}; there are '
      f'{", ".join((*known, *OTHER_SETTINGS))}'
    )
  return Limits(**part)


def run(
  omni: Any,
  workdir: Any,
  out: Any = None,
  *,
  seed: int = 0,
  limits: Limits | None = None,
  data: Any = None,
  log: Log = print,
) -> dict[str, Any]:
  """Evaluates and writes `out`/{metrics.json, report.html, media/}; metrics.json comes last and whole.

  Args:
    omni: what `omni_jax.load` returns.
    workdir: the run's folder, for its log of losses.
    out: folder to write; by default workdir/eval/STEP.
    limits: how much is asked; by default what the run's config says.
    data: a JSON-lines file to evaluate on, instead of the run's own test data.

  Returns:
    What metrics.json holds.
  """
  began = time.monotonic()
  out = epath.Path(out) if out else epath.Path(workdir) / 'eval' / str(omni.step)
  records = runlog.read(workdir)
  limits = limits or limits_of(omni.config)
  measured = _measured(omni, data, limits, seed=seed, log=log)
  metrics = {
    'version': VERSION,
    'step': int(omni.step),
    'seconds': 0.0,
    'train_minutes': _minutes(records),
    **measured.metrics,
    'routing': runlog.routing(records),
  }
  metrics = plain(metrics | {'seconds': round(time.monotonic() - began, 2)})
  _write(out, metrics, measured.gallery, records)
  log(f'evaluate: wrote {out / "report.html"} after {metrics["seconds"]:.1f} s')
  return metrics


def _measured(omni: Any, data: Any, limits: Limits, *, seed: int, log: Log) -> Measured:
  """On the file that was named, or on the test data of the run's own source."""
  own = omni.config.data
  if not data and own.source == 'digits':
    return on_digits(omni, limits, seed=seed, log=log)
  if not data and own.source == 'text':
    return on_text(omni)
  model = OmniConfig.from_config(omni.config.model)
  if not data:
    check_tokenizers(own, Tokenizer(model.tokenizer), 'eval_file')
  lines = JsonLines(data, model.media) if data else held_out(own, model.media)
  return on_examples(omni, lines, limits, seed=seed, log=log)


def on_text(omni: Any) -> Measured:
  """Loss on the part of a text file that training does not see."""
  own = omni.config.data
  path = epath.Path(own.root) / own.train_file
  pieces = TextFile(path, length=own.piece, train=False)
  group = {'n': len(pieces), 'loss': omni.loss([pieces[k] for k in range(len(pieces))])}
  return Measured(
    {
      'directions': {},
      'data': {
        'file': str(path),
        'n': len(pieces),
        'bad': 0,
        'groups': {'text': group},
        'targets': {},
      },
      'codec': {},
    },
    Gallery(),
  )


def on_digits(omni: Any, limits: Limits, *, seed: int, log: Log) -> Measured:
  """The nine directions, free replies and the codec, on the embedded digits."""
  rate = OmniConfig.from_config(omni.config.model).media.audio.rate
  digits = load_digits(omni.config.data)
  began = time.monotonic()
  fitted = judges.fit(digits, rate=rate, seed=seed)
  log(
    'evaluate: judges on real data '
    + ', '.join(f'{name} {value:.1%}' for name, value in fitted.real.items())
    + f' in {time.monotonic() - began:.1f} s'
  )
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
  outcomes = directions.ask_all(
    omni, material, limits, seed=seed, judges=fitted, real=real, log=log
  )
  free = directions.ask_any(omni, material, limits, seed=seed, judges=fitted, real=real)
  metrics = {
    'directions': {
      outcome.direction.name: directions.metrics_of(outcome, fitted, real)
      for outcome in outcomes
    },
    'any': directions.metrics_of_any(free),
    'judges': fitted.real,
    'codec': codec_eval.evaluate(
      omni,
      _some(digits.test_clips, limits.n_codec, seed),
      rate=rate,
      size=_entries(omni),
      judge=fitted.speech,
    ),
  }
  return Measured(metrics, gallery.of_digits(outcomes, free, material, rate))


def on_examples(
  omni: Any, lines: Lines, limits: Limits, *, seed: int, log: Log
) -> Measured:
  """Scores by kind of example; judges of what is labelled in JSON lines are fitted to the training file."""
  path, media = lines.path, OmniConfig.from_config(omni.config.model).media
  rate = media.audio.rate
  examples, bad = [], []
  for k in _some_of_each_group(lines, limits.n_data, seed):
    try:
      examples.append(lines[k])
    except BadRecord as error:
      bad.append(str(error))
  if not examples:
    raise UserError(
      f'{path}: none of {len(bad)} examples can be read; the first: {bad[0]}'
    )
  log(
    f'evaluate: {len(examples)} examples of {path}'
    + (f'; {len(bad)} cannot be read: {bad[0]}' if bad else '')
  )
  train = _training_file(omni)
  classes = (
    labelled.fit(JsonLines(train, media), lines, rate=rate, seed=seed)
    if train
    else None
  )
  if classes:
    log(
      'evaluate: judges on real data '
      + ', '.join(f'{name} {value:.1%}' for name, value in classes.judges.real.items())
    )
  answered = example_files.answer_all(
    omni, examples, seed=seed, sampling=limits.sampling, log=log
  )
  groups = {
    group: example_files.metrics_of(omni, items, rate=rate, classes=classes)
    for group, items in answered.items()
  }
  wanted = omni.config.get('evaluate', {}).get('targets')
  metrics = {
    'directions': {},
    'data': {
      'file': str(path),
      'n': len(examples),
      'bad': len(bad),
      'groups': groups,
      'targets': wanted.to_dict() if wanted else {},
    },
    'codec': {},
  }
  if classes:
    metrics['judges'] = classes.judges.real
    clips, judge = classes.media.test_clips, classes.judges.speech
  else:
    clips, judge = (
      [
        SimpleNamespace(wave=part['wave'])
        for example in examples
        for part in _parts(example)
        if part['type'] == 'audio'
      ],
      None,
    )
  if clips:
    metrics['codec'] = codec_eval.evaluate(
      omni,
      _some(clips, limits.n_codec, seed),
      rate=rate,
      size=_entries(omni),
      judge=judge,
    )
  return Measured(metrics, gallery.of_data(answered, rate))


def _training_file(omni: Any) -> Any | None:
  """The JSON lines that the run was trained on, where they are still there."""
  data = omni.config.data
  if data.source != 'jsonl' or not data.get('train_file'):
    return None
  path = epath.Path(data.root) / data.train_file
  return path if path.is_file() else None


def _some_of_each_group(lines: Lines, n: int, seed: int) -> list[int]:
  """Line numbers: n of each group, drawn without putting back, or all of it."""
  members: dict[str, list[int]] = {}
  for k in range(len(lines)):
    members.setdefault(example_files.case_of(lines.encoded(k)).group, []).append(k)
  return sorted(k for group in members.values() for k in _some(group, n, seed))


def plain(value: Any) -> Any:
  """The same as JSON can hold it: numbers of numpy and jax as Python's, infinite ones and NaN as null."""
  if isinstance(value, Mapping):
    return {str(name): plain(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if value is None or isinstance(value, str | bool | int):
    return value
  number = np.asarray(value).item()
  return number if np.isfinite(number) else None


def _parts(example: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  return [
    part
    for message in example.get('messages') or [example]
    for part in message['content']
  ]


def _some(items: Sequence[Any], n: int, seed: int) -> list[Any]:
  """n of the items, drawn without putting back, or all."""
  return [
    items[int(k)]
    for k in np.sort(np.random.default_rng(seed).permutation(len(items))[:n])
  ]


def _entries(omni: Any) -> int:
  return OmniConfig.from_config(omni.config.model).codec.entries


def _minutes(records: Sequence[Mapping]) -> float | None:
  """From the start of the run to its last logged step."""
  seconds = [
    record['seconds']
    for record in records
    if isinstance(record.get('seconds'), int | float)
  ]
  return max(seconds) / 60 if seconds else None


def _write(
  out: epath.Path,
  metrics: Mapping[str, Any],
  shown: Gallery,
  records: Sequence[Mapping],
):
  """Media first; page and numbers under other names until they are whole."""
  (out / 'media').mkdir(parents=True, exist_ok=True)
  title = 'omni_jax: evaluation'
  texts = {
    'report.html': report.render(
      metrics, shown, records, Media(out / 'media'), title=title
    ),
    'metrics.json': json.dumps(metrics, indent=1, allow_nan=False) + '\n',
  }
  for name, text in texts.items():
    part = out / f'{name}.part'
    part.write_text(text)
    part.replace(out / name)
