"""Builds the frame of every page: style sheet, head and sections.

A page has no scripts and refers to nothing outside itself.
"""

from collections.abc import Sequence
import html

MISSING = '–'  # shown where a value is unknown
STYLE = """
@page { margin: 13mm 12mm; }
:root {
  color-scheme: light; --ink: #1c2430; --soft: #68758a; --line: #e2e7ee;
  --blue: #1f5ea8; --ok: #1c7c4a; --bad: #b8382e;
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1080px; padding: 20px 16px 60px; background: #f6f8fa;
  color: var(--ink);
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { margin: 0; font-size: 1.7rem; }
h2 { margin: 40px 0 10px; font-size: 1.2rem; }
h3 { margin: 0 0 6px; font-size: 1rem; }
h3, .what { overflow-wrap: anywhere; }
h3 b { float: right; }
nav {
  margin: 12px 0; display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .88rem;
}
nav a { color: var(--blue); }
.facts, .note, .small, small { color: var(--soft); margin: 2px 0 10px; }
.small, small { font-size: .8rem; }
.ok { color: var(--ok); }
.bad { color: var(--bad); }
.verdict { font-weight: 600; margin: 4px 0; }
.cards, .charts, .confusions {
  display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr));
}
.card, .chart, .example, .spoken, .confusions figure, .wide {
  background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; margin: 0;
}
.wide { overflow-x: auto; }
.big { font-size: 1.9rem; font-weight: 650; line-height: 1.1; }
.card table { width: 100%; border-collapse: collapse; font-size: .87rem; }
.card td { border-top: 1px solid var(--line); padding: 3px 0; }
.card td + td {
  text-align: right; white-space: nowrap; padding-left: 8px;
  font-variant-numeric: tabular-nums;
}
.card td.long { white-space: normal; }
.card td:nth-child(3) { color: var(--soft); width: 66px; }
.foot { margin: 10px 0 0; }
.bar {
  position: relative; height: 9px; border-radius: 5px; background: var(--line);
  margin: 8px 0;
}
.bar span { display: block; height: 100%; border-radius: 5px; background: var(--soft); }
.bar.ok span { background: var(--ok); }
.bar.bad span { background: var(--bad); }
.bar i {
  position: absolute; top: -4px; width: 2px; height: 17px; background: var(--ink);
}
figure { margin: 0; }
figcaption { font-size: .87rem; margin-bottom: 6px; color: var(--soft); }
.chart figcaption b { float: right; color: var(--ink); }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 11px; fill: var(--soft); }
.grid { stroke: var(--line); }
img.grid { stroke: none; }
.line { fill: none; stroke: var(--blue); stroke-width: 1.8; stroke-linejoin: round; }
.example {
  display: grid; gap: 6px 14px; align-items: center; margin-bottom: 8px;
  grid-template-columns: 165px minmax(0, 1fr) 20px minmax(0, 1.3fr);
}
.what { font-size: .9rem; }
.what small { display: block; margin: 0; }
.to { color: var(--soft); }
.side { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; }
.word { font-size: 1.35rem; font-weight: 600; overflow-wrap: anywhere; }
img { image-rendering: pixelated; }
.digit { width: 64px; border-radius: 4px; }
img.grid { width: 100%; border-radius: 6px; }
.sound {
  display: flex; flex-direction: column; gap: 4px; width: 230px; max-width: 100%;
}
.spectrogram {
  width: 100%; height: 74px; border: 1px solid var(--line); border-radius: 6px;
  image-rendering: auto;
}
audio { width: 100%; height: 34px; }
.file { display: none; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
.spoken { margin-bottom: 8px; }
.spoken .sound { width: 100%; }
.heat {
  border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums;
  width: 100%;
}
.heat td, .heat th {
  text-align: center; padding: 3px 2px; min-width: 22px; border: 1px solid var(--line);
}
.heat th { font-weight: 500; color: var(--soft); }
.confusions .heat { table-layout: fixed; }
.confusions .heat td, .confusions .heat th { min-width: 0; padding: 3px 0; }
@media (max-width: 640px) {
  .example, .pair { grid-template-columns: minmax(0, 1fr); }
  .to { display: none; }
  .side + .to + .side { border-left: 3px solid var(--blue); padding-left: 10px; }
  .sound { width: 100%; }
  nav { gap: 0 18px; font-size: .95rem; }
  nav a { padding: 8px 0; }
}
@media print {
  body {
    max-width: none; padding: 0; background: none; font-size: 10pt;
    print-color-adjust: exact;
  }
  nav, audio { display: none; }
  .file { display: block; margin: 0; font-size: 7.5pt; }
  h2 { margin: 18px 0 6px; }
  h2, h3, .note { break-after: avoid; }
  .card, .chart, .example, .spoken, figure, .wide, tr { break-inside: avoid; }
  .cards, .charts, .confusions { gap: 8px; }
  .confusions { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .card, .chart, .example, .spoken, .confusions figure {
    padding: 7px 10px; border-radius: 5px;
  }
  .confusions .heat { font-size: 7pt; }
  .spectrogram { height: 46px; }
  .digit { width: 48px; }
}
"""


def title_of(name: str) -> str:
  """Returns the name of a direction, group or metric for readers.

  'a_to_b_c' becomes 'a → b c'.
  """
  return name.replace('_to_', ' → ').replace('_', ' ')


def page(title: str, head: str, sections: Sequence[tuple[str, str]]) -> str:
  """Returns an HTML document with a link to each section at its top.

  Args:
    title: title of the document, as text.
    head: what precedes the sections, as HTML.
    sections: title (text) and body (HTML) of each section.
  """
  links = ''
  bodies = ''
  for k, (name, body) in enumerate(sections):
    heading = html.escape(name)
    links += f'<a href="#s{k}">{heading}</a>'
    bodies += f'<section id="s{k}"><h2>{heading}</h2>{body}</section>'
  return (
    '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{html.escape(title)}</title><style>{STYLE}</style></head>'
    f'<body>{head}<nav>{links}</nav>{bodies}</body></html>\n'
  )
