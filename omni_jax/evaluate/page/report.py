"""The report: one page that needs nothing but itself."""

from collections.abc import Mapping, Sequence
import html
from typing import Any

from omni_jax.evaluate.metrics import targets
from omni_jax.evaluate.page import charts, training_log
from omni_jax.evaluate.page.gallery import Example, Gallery, Spoken
from omni_jax.evaluate.page.page import page
from omni_jax.evaluate.page.shown import grid, Media
from omni_jax.evaluate.tasks.prompts import DIRECTIONS

LABEL = {
  'language_accuracy': 'language',
  'voice_accuracy': 'voice',
  'diversity': 'spread ÷ real',
  'copying_ratio': 'newness ÷ real',
  'prompt_copying_ratio': 'unlike its prompt',
}
JUDGES = {
  'judge_accuracy_real': 'digits',
  'language_judge_accuracy_real': 'language',
  'voice_judge_accuracy_real': 'voice',
}
RATIOS = ('diversity', 'copying_ratio', 'prompt_copying_ratio')
GROUP = {'known_voices': 'known voices', 'unseen_voices': 'voices never heard'}


def render(
  metrics: Mapping[str, Any],
  gallery: Gallery,
  records: Sequence[Mapping],
  media: Media,
  *,
  title: str,
) -> str:
  """HTML of the whole report; media files are written as they are embedded."""
  found = targets.checks(metrics)
  passed = sum(check.passed for check in found)
  facts = [f'step {metrics["step"]:,}']
  if metrics.get('train_minutes'):
    facts.append(f'{metrics["train_minutes"]:.1f} min from the start of the run')
  facts.append(f'evaluated in {metrics["seconds"]:.0f} s')
  verdict = (
    ''
    if not found
    else (
      f'<p class="verdict {"ok" if passed == len(found) else "bad"}">'
      f'{passed} of {len(found)} targets met</p>'
    )
  )
  sections = [
    ('Directions', _directions(metrics)),
    ('Data', _data(metrics)),
    (
      'Examples',
      ''.join(_example_html(example, media) for example in gallery.examples),
    ),
    (
      'The model chooses what to reply',
      ''.join(_example_html(example, media) for example in gallery.free),
    ),
    ('Drawings', _drawings_html(gallery, media)),
    ('Spoken words', ''.join(_spoken_html(item, media) for item in gallery.spoken)),
    ('Speech codec', _codec(metrics.get('codec', {}))),
    ('Losses', _loss_charts(records)),
    ('Which experts serve which modality', _routing(metrics.get('routing', {}))),
    ('What was taken for what', _confusions(metrics)),
  ]
  head = (
    f'<h1>{html.escape(title)}</h1><p class="facts">{" · ".join(facts)}</p>{verdict}'
  )
  return page(title, head, [(name, body) for name, body in sections if body])


def _directions(metrics: Mapping[str, Any]) -> str:
  """A card for each direction; the mark on a bar is the target."""
  entries = metrics.get('directions', {})
  cards = [
    _card(direction.name, entries[direction.name])
    for direction in DIRECTIONS
    if direction.name in entries
  ]
  if not cards:
    return ''
  note = (
    '<p class="note">Share of replies that an independent judge, fitted to real training data only, takes for '
    'the digit asked. The tick on a bar is its target.</p>'
  )
  return f'{note}<div class="cards">{"".join(cards)}</div>'


def _card(name: str, entry: Mapping[str, Any]) -> str:
  wanted = targets.TARGETS[name]
  missed = [
    key for key in wanted if entry.get(key) is None or entry[key] < wanted[key] - 1e-9
  ]
  low, high = entry['interval']
  lines = [
    f'<div class="big">{_percent(entry["accuracy"])}</div>',
    charts.bar(entry['accuracy'], wanted['accuracy']),
    f'<p class="small">target {_percent(wanted["accuracy"])}, 95 % interval {100 * low:.1f}–{100 * high:.1f}, '
    f'n = {entry["n"]}</p>',
  ]
  rows = [
    _score_row(LABEL[key], entry[key], wanted.get(key), key in RATIOS)
    for key in LABEL
    if key in entry
  ]
  rows += [
    _score_row(text, entry[group]['accuracy'], None, False)
    for group, text in GROUP.items()
    if group in entry
  ]
  rows += [
    _score_row(f'{text}, language', entry[group]['language_accuracy'], None, False)
    for group, text in GROUP.items()
    if 'language_accuracy' in entry.get(group, {})
  ]
  judges = ', '.join(
    f'{text} {_percent(entry[key])}'
    for key, text in JUDGES.items()
    if entry.get(key) is not None
  )
  foot = (
    f'<p class="small foot">judges on real test data: {judges}</p>' if judges else ''
  )
  mark = '<b class="bad">✗</b>' if missed else '<b class="ok">✓</b>'
  return f'<div class="card"><h3>{_arrow(name)} {mark}</h3>{"".join(lines)}<table>{"".join(rows)}</table>{foot}</div>'


def _score_row(
  label: str, value: float | None, target: float | None, ratio: bool
) -> str:
  shown = '–' if value is None else f'{value:.2f}' if ratio else _percent(value)
  if target is None:
    return f'<tr><td>{label}</td><td>{shown}</td><td></td></tr>'
  kind, mark = (
    ('ok', '✓') if value is not None and value >= target - 1e-9 else ('bad', '✗')
  )
  goal = f'≥ {target:.2f}' if ratio else f'≥ {_percent(target)}'
  return (
    f'<tr><td>{label}</td><td class="{kind}">{shown} {mark}</td><td>{goal}</td></tr>'
  )


def _data(metrics: Mapping[str, Any]) -> str:
  """Scores of a JSON-lines file, group by group."""
  groups = metrics.get('data', {}).get('groups', {})
  cards = []
  for name, entry in groups.items():
    values = {
      **{f'loss {key}': value for key, value in entry['loss'].items()},
      **{
        key.replace('_', ' '): value
        for key, value in entry.items()
        if key != 'loss' and isinstance(value, int | float | None)
      },
    }
    goals = {
      check.name: check
      for check in targets.checks({'data': metrics['data']})
      if check.direction == name
    }
    rows = ''.join(
      _value_row(key, value, goals.get(key.replace(' ', '_')))
      for key, value in values.items()
    )
    cards.append(
      f'<div class="card"><h3>{_arrow(name)}</h3><table>{rows}</table></div>'
    )
  return f'<div class="cards">{"".join(cards)}</div>' if cards else ''


def _value_row(label: str, value: float | None, goal: targets.Check | None) -> str:
  shown = '–' if value is None else f'{value:.4g}'
  if goal is None:
    return f'<tr><td>{html.escape(label)}</td><td>{shown}</td><td></td></tr>'
  kind, mark = ('ok', '✓') if goal.passed else ('bad', '✗')
  sign = '≤' if goal.name in targets.ERRORS else '≥'
  return f'<tr><td>{html.escape(label)}</td><td class="{kind}">{shown} {mark}</td><td>{sign} {goal.target:g}</td></tr>'


def _example_html(example: Example, media: Media) -> str:
  mark = {None: '', True: '<b class="ok">✓</b>', False: '<b class="bad">✗</b>'}[
    example.right
  ]
  prompt = ''.join(
    media.html(item, f'{example.title}_prompt') for item in example.prompt
  )
  reply = (
    ''.join(media.html(item, f'{example.title}_reply') for item in example.reply)
    or '<span class="word">∅</span>'
  )
  return (
    f'<div class="example"><div class="what">{_arrow(example.title)} {mark}<small>{html.escape(example.asked)}'
    f'</small></div><div class="side">{prompt}</div><div class="to">→</div><div class="side">{reply}</div></div>'
  )


def _drawings_html(gallery: Gallery, media: Media) -> str:
  if not gallery.drawn:
    return ''
  return (
    '<p class="note">The first drawings of each digit, not chosen, beside real test images.</p>'
    '<div class="pair">'
    f'<figure><figcaption>drawn</figcaption>{media.picture(grid(gallery.drawn), "drawn", css="grid")}</figure>'
    f'<figure><figcaption>real</figcaption>{media.picture(grid(gallery.real), "real", css="grid")}</figure>'
    '</div>'
  )


def _spoken_html(item: Spoken, media: Media) -> str:
  generated = (
    media.html(item.generated, 'spoken')
    if item.generated
    else '<span class="word">∅</span>'
  )
  return (
    f'<div class="spoken"><h3>{html.escape(item.title)}</h3><div class="pair">'
    f'<figure><figcaption>model</figcaption>{generated}</figure>'
    f'<figure><figcaption>real</figcaption>{media.html(item.real, "real_word")}</figure></div></div>'
  )


def _codec(codec: Mapping[str, Any]) -> str:
  if not codec:
    return ''
  used = ', '.join(f'{value:.0f}' for value in codec['perplexity'])
  rows = [
    f'<tr><td>{name}</td><td class="long">{value}</td><td></td></tr>'
    for name, value in (
      ('mel distance', f'{codec["mel_distance"]:.3f}'),
      ('SI-SNR', f'{codec["si_snr"]:.1f} dB'),
      ('STOI', '–' if codec['stoi'] is None else f'{codec["stoi"]:.3f}'),
      ('codes in use (perplexity)', f'{used} of {codec["codebook_size"] or "?"}'),
    )
  ]
  if codec.get('judge_accuracy_original') is not None:
    rows.append(
      _score_row('judge on originals', codec['judge_accuracy_original'], None, False)
    )
  labels = {
    'perplexity_ratio': 'least used codebook',
    'judge_accuracy_reconstructed': 'judge on reconstructions',
  }
  rows += [
    _score_row(labels[check.name], check.value, check.target, False)
    for check in targets.checks({'codec': codec})
  ]
  return f'<div class="card"><table>{"".join(rows)}</table><p class="small foot">{codec["n"]} real test clips</p></div>'


def _loss_charts(records: Sequence[Mapping]) -> str:
  """Losses of every stage; what the codec's stage calls codec/… too."""
  figures = []
  for stage in dict.fromkeys(str(record.get('stage', '')) for record in records):
    own = [record for record in records if str(record.get('stage', '')) == stage]
    found = {
      **training_log.curves(own, prefix='loss'),
      **training_log.curves(own, prefix='codec/'),
    }
    figures += [
      charts.line_chart(f'{stage}: {name}', curve)
      for name, curve in found.items()
      if len(curve.values) > 1
    ]
  return f'<div class="charts">{"".join(figures)}</div>' if figures else ''


def _routing(routing: Mapping[str, Any]) -> str:
  table = routing.get('expert_by_modality')
  if not table:
    return ''
  columns = [f'E{k}' for k in range(len(next(iter(table.values()))))]
  heat = charts.heat_table(list(table.values()), list(table), columns, percent=True)
  note = '<p class="note">Percent of a modality’s choices that go to each expert, all layers.</p>'
  return f'{note}<div class="wide">{heat}</div>'


def _confusions(metrics: Mapping[str, Any]) -> str:
  digits = [str(k) for k in range(10)]
  tables = [
    f'<figure><figcaption>{_arrow(name)}</figcaption>'
    f'{charts.heat_table(entry["confusion"], digits, [*digits, "?"])}</figure>'
    for name, entry in metrics.get('directions', {}).items()
    if 'confusion' in entry
  ]
  note = '<p class="note">Rows: digit asked; columns: digit that the reply was taken for; ?: none.</p>'
  return f'{note}<div class="confusions">{"".join(tables)}</div>' if tables else ''


def _arrow(name: str) -> str:
  return html.escape(name).replace('_to_', ' → ').replace('_', ' ')


def _percent(value: float | None) -> str:
  return '–' if value is None else f'{100 * value:.1f} %'
