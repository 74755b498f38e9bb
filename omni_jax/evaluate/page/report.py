"""Renders the report: a self-contained page that works offline."""

from collections.abc import Mapping, Sequence
import html
from typing import Any

from omni_jax.evaluate.metrics import targets
from omni_jax.evaluate.metrics.targets import Check
from omni_jax.evaluate.page import charts, training_log
from omni_jax.evaluate.page.gallery import Example, Gallery, SpokenWord
from omni_jax.evaluate.page.page_media import grid, Media, NOTHING
from omni_jax.evaluate.page.template import MISSING, page, title_of
from omni_jax.evaluate.tasks.prompts import DIGITS, DIRECTIONS

# Metrics besides the accuracy of a direction, and what the report calls them.
SCORE_LABELS = {
  'language_accuracy': 'language accuracy',
  'voice_accuracy': 'voice accuracy',
  'diversity': 'diversity ÷ real',
  'copying_ratio': 'novelty ÷ real',
  'prompt_copying_ratio': 'novelty against prompt ÷ real',
}
RATIOS = ('diversity', 'copying_ratio', 'prompt_copying_ratio')
JUDGE_LABELS = {
  'judge_accuracy_real': 'digits',
  'language_judge_accuracy_real': 'languages',
  'voice_judge_accuracy_real': 'voices',
}
GROUP_LABELS = {'known_voices': 'known voices', 'unseen_voices': 'unseen voices'}
CODEC_LABELS = {
  'perplexity_ratio': 'least used codebook (perplexity ÷ size)',
  'judge_accuracy_reconstructed': 'judge accuracy on reconstructions',
}
OK = '<b class="ok">✓</b>'
BAD = '<b class="bad">✗</b>'


def render(
  metrics: Mapping[str, Any],
  gallery: Gallery,
  records: Sequence[training_log.Record],
  media: Media,
  *,
  title: str,
) -> str:
  """Returns the HTML of the report; media files are written as they are embedded.

  Args:
    metrics: contents of metrics.json.
    gallery: the prompts and replies to show.
    records: the training log.
    media: where media files are written.
    title: title of the page.
  """
  sections = [
    ('Directions', _directions(metrics)),
    ('Test data', _data(metrics)),
    ('Examples', _examples(gallery.examples, media)),
    ('Free choice of modality', _examples(gallery.free, media)),
    ('Drawings', _drawings(gallery, media)),
    ('Spoken words', _spoken_words(gallery.spoken, media)),
    ('Speech codec', _codec(metrics.get('codec', {}))),
    ('Losses', _loss_charts(records)),
    ('Expert use by modality', _routing(metrics.get('routing', {}))),
    ('Confusion tables', _confusions(metrics)),
  ]
  filled = [(name, body) for name, body in sections if body]
  head = f'<h1>{html.escape(title)}</h1>{_facts(metrics)}{_verdict(metrics)}'
  return page(title, head, filled)


def _facts(metrics: Mapping[str, Any]) -> str:
  facts = [f'step {metrics["step"]:,}']
  if metrics.get('train_minutes'):
    facts.append(f'{metrics["train_minutes"]:.1f} min into the run')
  facts.append(f'evaluated in {metrics["seconds"]:.0f} s')
  return f'<p class="facts">{" · ".join(facts)}</p>'


def _verdict(metrics: Mapping[str, Any]) -> str:
  checks = targets.checks(metrics)
  if not checks:
    return ''
  passed = sum(check.passed for check in checks)
  kind = 'ok' if passed == len(checks) else 'bad'
  return f'<p class="verdict {kind}">{passed} of {len(checks)} targets met</p>'


def _directions(metrics: Mapping[str, Any]) -> str:
  """Returns a card for each direction."""
  entries = metrics.get('directions', {})
  cards = ''
  for direction in DIRECTIONS:
    if direction.name in entries:
      cards += _card(direction.name, entries[direction.name])
  if not cards:
    return ''
  return (
    '<p class="note">Accuracy is the share of replies in which an independent judge, '
    'fitted to real training data only, recognises the requested digit. The tick on a '
    f'bar marks its target.</p><div class="cards">{cards}</div>'
  )


def _card(name: str, entry: Mapping[str, Any]) -> str:
  checks = {
    check.name: check for check in targets.checks({'directions': {name: entry}})
  }
  accuracy = checks['accuracy']
  low, high = entry['interval']
  rows = ''
  for key, label in SCORE_LABELS.items():
    if key in entry:
      rows += _score_row(label, entry[key], checks.get(key), ratio=key in RATIOS)
  for group, label in GROUP_LABELS.items():
    if group in entry:
      rows += _score_row(label, entry[group]['accuracy'])
  for group, label in GROUP_LABELS.items():
    if 'language_accuracy' in entry.get(group, {}):
      rows += _score_row(f'{label}, language', entry[group]['language_accuracy'])
  mark = OK if all(check.passed for check in checks.values()) else BAD
  return (
    f'<div class="card"><h3>{_arrow(name)} {mark}</h3>'
    f'<div class="big">{_percent(accuracy.value)}</div>'
    f'{charts.bar(accuracy.value, accuracy.target, accuracy.passed)}'
    f'<p class="small">target {_percent(accuracy.target)}, 95 % confidence interval '
    f'{100 * low:.1f}–{100 * high:.1f} %, n = {entry["n"]}</p>'
    f'<table>{rows}</table>{_judge_note(entry)}</div>'
  )


def _judge_note(entry: Mapping[str, Any]) -> str:
  known: list[str] = []
  for key, label in JUDGE_LABELS.items():
    if entry.get(key) is not None:
      known.append(f'{label} {_percent(entry[key])}')
  if not known:
    return ''
  text = ', '.join(known)
  return f'<p class="small foot">judge accuracy on real test data: {text}</p>'


def _score_row(
  label: str, value: float | None, check: Check | None = None, *, ratio: bool = False
) -> str:
  """Returns a table row: a share in percent or a ratio, with its target, if any."""
  if check is None:
    return _row(label, _score(value, ratio))
  return _row(label, _score(value, ratio), check, f'≥ {_score(check.target, ratio)}')


def _score(value: float | None, ratio: bool) -> str:
  if not ratio:
    return _percent(value)
  return MISSING if value is None else f'{value:.2f}'


def _row(label: str, value: str, check: Check | None = None, target: str = '') -> str:
  label = html.escape(label)
  if check is None:
    return f'<tr><td>{label}</td><td>{value}</td><td></td></tr>'
  kind = 'ok' if check.passed else 'bad'
  mark = '✓' if check.passed else '✗'
  return (
    f'<tr><td>{label}</td><td class="{kind}">{value} {mark}</td><td>{target}</td></tr>'
  )


def _data(metrics: Mapping[str, Any]) -> str:
  """Returns a card for each group of a JSON-lines file."""
  data = metrics.get('data', {})
  checks = targets.checks({'data': data})
  cards = ''
  for group, entry in data.get('groups', {}).items():
    own = {check.name: check for check in checks if check.direction == group}
    cards += _group_card(group, entry, own)
  return f'<div class="cards">{cards}</div>' if cards else ''


def _group_card(
  group: str, entry: Mapping[str, Any], checks: Mapping[str, Check]
) -> str:
  values: dict[str, float | None] = {}
  for name, loss in entry['loss'].items():
    values[f'loss {name}'] = loss
  for name, value in entry.items():
    if name != 'loss' and isinstance(value, int | float | None):
      values[name.replace('_', ' ')] = value
  rows = ''
  for label, value in values.items():
    rows += _value_row(label, value, checks.get(label.replace(' ', '_')))
  return f'<div class="card"><h3>{_arrow(group)}</h3><table>{rows}</table></div>'


def _value_row(label: str, value: float | None, check: Check | None) -> str:
  shown = MISSING if value is None else f'{value:.4g}'
  if check is None:
    return _row(label, shown)
  sign = '≤' if check.name in targets.ERRORS else '≥'
  return _row(label, shown, check, f'{sign} {check.target:g}')


def _examples(examples: Sequence[Example], media: Media) -> str:
  return ''.join(_example(example, media) for example in examples)


def _example(example: Example, media: Media) -> str:
  mark = ''
  if example.right is not None:
    mark = OK if example.right else BAD
  prompt = ''
  for item in example.prompt:
    prompt += media.html(item, f'{example.title}_prompt')
  reply = ''
  for item in example.reply:
    reply += media.html(item, f'{example.title}_reply')
  return (
    f'<div class="example"><div class="what">{_arrow(example.title)} {mark}'
    f'<small>{html.escape(example.note)}</small></div>'
    f'<div class="side">{prompt}</div><div class="to">→</div>'
    f'<div class="side">{reply or NOTHING}</div></div>'
  )


def _drawings(gallery: Gallery, media: Media) -> str:
  if not gallery.drawn:
    return ''
  drawn = media.picture(grid(gallery.drawn), 'drawn', css='grid')
  real = media.picture(grid(gallery.real), 'real', css='grid')
  return (
    '<p class="note">The first drawings of each digit, unselected, beside real test '
    f'images.</p>{_pair("drawn", drawn, real)}'
  )


def _spoken_words(words: Sequence[SpokenWord], media: Media) -> str:
  parts = ''
  for word in words:
    generated = NOTHING
    if word.generated:
      generated = media.html(word.generated, 'spoken')
    real = media.html(word.real, 'real_word')
    parts += (
      f'<div class="spoken"><h3>{html.escape(word.title)}</h3>'
      f'{_pair("model", generated, real)}</div>'
    )
  return parts


def _pair(name: str, generated: str, real: str) -> str:
  """Returns what the model generated beside something real."""
  return (
    f'<div class="pair"><figure><figcaption>{name}</figcaption>{generated}</figure>'
    f'<figure><figcaption>real</figcaption>{real}</figure></div>'
  )


def _codec(codec: Mapping[str, Any]) -> str:
  if not codec:
    return ''
  used = ', '.join(f'{value:.0f}' for value in codec['perplexity'])
  signal = {
    'mel distance': f'{codec["mel_distance"]:.3f}',
    'SI-SNR': f'{codec["si_snr"]:.1f} dB',
    'STOI': MISSING if codec['stoi'] is None else f'{codec["stoi"]:.3f}',
    'codes used (perplexity)': f'{used} of {codec["codebook_size"] or "?"}',
  }
  rows = ''
  for name, value in signal.items():
    rows += f'<tr><td>{name}</td><td class="long">{value}</td><td></td></tr>'
  if codec.get('judge_accuracy_original') is not None:
    label = 'judge accuracy on originals'
    rows += _score_row(label, codec['judge_accuracy_original'])
  for check in targets.checks({'codec': codec}):
    rows += _score_row(CODEC_LABELS[check.name], check.value, check)
  note = f'<p class="small foot">{codec["n"]} real test clips</p>'
  return f'<div class="card"><table>{rows}</table>{note}</div>'


def _loss_charts(records: Sequence[training_log.Record]) -> str:
  """Returns charts of the losses of every stage, and of all curves named STAGE/…"""
  stages: dict[str, list[training_log.Record]] = {}
  for record in records:
    stages.setdefault(str(record.get('stage', '')), []).append(record)
  figures = ''
  for stage, own in stages.items():
    curves = training_log.curves(own, prefix='loss')
    curves |= training_log.curves(own, prefix=f'{stage}/')
    for name, curve in curves.items():
      if len(curve.values) > 1:
        figures += charts.curve_chart(f'{stage}: {name}', curve)
  return f'<div class="charts">{figures}</div>' if figures else ''


def _routing(routing: Mapping[str, Any]) -> str:
  table = routing.get('expert_by_modality')
  if not table:
    return ''
  shares = list(table.values())
  columns = [f'E{k}' for k in range(len(shares[0]))]
  heat = charts.heat_table(shares, list(table), columns, percent=True)
  return (
    '<p class="note">Percentage of each modality’s choices that go to each expert, '
    f'over all layers.</p><div class="wide">{heat}</div>'
  )


def _confusions(metrics: Mapping[str, Any]) -> str:
  digits = [str(digit) for digit in range(DIGITS)]
  tables = ''
  for name, entry in metrics.get('directions', {}).items():
    if 'confusion' in entry:
      heat = charts.heat_table(entry['confusion'], digits, [*digits, '?'])
      tables += f'<figure><figcaption>{_arrow(name)}</figcaption>{heat}</figure>'
  if not tables:
    return ''
  return (
    '<p class="note">Rows: requested digit; columns: digit recognised in the reply '
    f'(?: none).</p><div class="confusions">{tables}</div>'
  )


def _arrow(name: str) -> str:
  """Returns the name of a direction or group as HTML."""
  return html.escape(title_of(name))


def _percent(value: float | None) -> str:
  return MISSING if value is None else f'{100 * value:.1f} %'
