"""The report in a real browser: nothing is fetched, nothing scrolls sideways on a phone, every player plays."""

from concurrent.futures import Future, TimeoutError
import contextlib
import http.server
import json
import shutil
import subprocess
import threading

from etils import epath
import numpy as np
import pytest

from omni_jax.evaluate.metrics.targets import TARGETS
from omni_jax.evaluate.page import report
from omni_jax.evaluate.page.gallery import Example, Gallery, Spoken
from omni_jax.evaluate.page.shown import Media, Shown

CHROMIUM = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
  None,
)
needs_browser = pytest.mark.skipif(
  CHROMIUM is None, reason='no chromium, chromium-browser or google-chrome on the PATH'
)

FLAGS = (
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-background-networking',
  '--disable-sync',
  '--hide-scrollbars',
  '--disable-component-update',
  '--no-first-run',
  '--autoplay-policy=no-user-gesture-required',
  '--disable-dev-shm-usage',
)
PHONE, SECONDS = 390, 90  # pixels; longest wait for the browser on a busy machine

# A frame as wide as a phone, since a headless window is 500 pixels wide at least. The page in it stays as it is.
FRAME = """<!DOCTYPE html><iframe width="PHONE" height="844" style="border:0"></iframe><script>
const frame = document.querySelector('iframe'), tell = (where, what) => fetch(where, {method: 'POST', body: JSON.stringify(what)});
frame.onload = async () => {
  const page = frame.contentDocument, root = page.documentElement, width = root.clientWidth;
  const wide = [...page.querySelectorAll('body *')].filter(e => !e.closest('.wide') && e.getBoundingClientRect().right > width + 0.5);
  const players = await Promise.all([...page.querySelectorAll('audio')].map(async sound => {
    if (sound.readyState < 1) await new Promise(done => { sound.onloadedmetadata = sound.onerror = done; sound.load(); });
    sound.muted = true;
    const error = await sound.play().then(() => new Promise(done => { sound.onended = () => done(null); }), String);
    return {duration: sound.duration, reached: sound.currentTime, error: error || (sound.error && sound.error.message)};
  }));
  tell('/found', {players, width, scrolls: root.scrollWidth, wide: wide.map(e => e.tagName + '.' + e.className),
                  fetched: frame.contentWindow.performance.getEntriesByType('resource').map(e => e.name)});
};
frame.src = '/report.html';
</script>""".replace('PHONE', str(PHONE))


@contextlib.contextmanager
def served(page):
  """Address of a server with the page and the frame around it, what the browser found out, what the page may not load."""
  found, refused = Future(), []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      body = {'/': FRAME, '/report.html': page}.get(self.path)
      self.send_response(404 if body is None else 200)
      self.send_header('Content-Type', 'text/html; charset=utf-8')
      if (
        self.path == '/report.html'
      ):  # whatever is not in the page itself is refused, and reported
        self.send_header(
          'Content-Security-Policy',
          "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; report-uri /refused",
        )
      self.end_headers()
      self.wfile.write((body or '').encode())

    def do_POST(self):
      what = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
      self.send_response(204)
      self.end_headers()
      if self.path == '/refused':
        refused.append(what['csp-report']['blocked-uri'])
      elif not found.done():
        found.set_result(what)

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f'http://127.0.0.1:{server.server_port}/', found, refused
  finally:
    server.shutdown()
    server.server_close()


def looked_at(page, folder):
  """What the frame found out, and the addresses that the page tried to load."""
  with served(page) as (address, found, refused):
    browser = subprocess.Popen(
      [
        CHROMIUM,
        *FLAGS,
        f'--user-data-dir={folder}/profile',
        '--remote-debugging-port=0',
        address,
      ],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    try:
      return found.result(SECONDS), refused
    except TimeoutError:
      pytest.fail(
        f'{CHROMIUM} told nothing within {SECONDS} s (exit code {browser.poll()})'
      )
    finally:
      browser.kill()
      browser.wait()


def a_report(folder):
  """Every section, with words and numbers as long as they get."""
  rng, rate = np.random.default_rng(0), 8000
  sounds = [
    Shown('audio', wave=np.sin(np.arange(n) / 3).astype(np.float32) / 2, rate=rate)
    for n in (800, 1600, 4000)
  ]
  image, long = (
    rng.random((8, 8, 1), np.float32),
    Shown('text', text='Donaudampfschifffahrtsgesellschaftskapitän' * 3),
  )
  picture = Shown('image', pixels=image)
  spoken = {'accuracy': 1.0, 'language_accuracy': 1.0}
  entry = {
    'accuracy': 1.0,
    'interval': [0.999, 1.0],
    'n': 10_000,
    'language_accuracy': 1.0,
    'voice_accuracy': 1.0,
    'diversity': 0.8,
    'unseen_voices': spoken,
    'known_voices': spoken,
    'judge_accuracy_real': 1.0,
    'language_judge_accuracy_real': 1.0,
    'voice_judge_accuracy_real': 1.0,
    'confusion': (np.eye(10, 11) * 10_000).tolist(),
  }
  group = {'n': 10_000, 'loss': {'text': 1.23456}, 'exact_match': 0.98765}
  metrics = {
    'step': 1_234_567,
    'seconds': 123.0,
    'train_minutes': 17.9,
    'directions': dict.fromkeys(TARGETS, entry),
    'data': {
      'groups': {'image+text+speech_to_text+image+speech' * 2: group},
      'targets': {},
    },
    'codec': {
      'perplexity': [255.5] * 8,
      'perplexity_ratio': 0.5,
      'codebook_size': 256,
      'mel_distance': 0.25,
      'si_snr': -28.0,
      'stoi': 0.84,
      'n': 100,
      'judge_accuracy_original': 1.0,
      'judge_accuracy_reconstructed': 1.0,
    },
    'routing': {
      'expert_by_modality': {name: [1 / 32] * 32 for name in ('text', 'image', 'audio')}
    },
  }
  records = [
    {'stage': 'omni', 'seconds': 60 * k, 'loss/text': 2.0 / (k + 1)} for k in range(9)
  ]
  gallery = Gallery(
    [
      Example(
        'speech_to_speech', 'digit 7, en', [sounds[0], long], [sounds[1], picture], True
      )
    ],
    [Example('any', 'reply in en', [long], [long, picture, sounds[2]], None)],
    [[image] * 10] * 6,
    [[image] * 10] * 6,
    [Spoken('siebenundzwanzig (de, voice Denis)', sounds[1], sounds[2])],
  )
  (folder / 'media').mkdir()
  return report.render(
    metrics,
    gallery,
    records,
    Media(epath.Path(folder / 'media')),
    title='omni_jax: evaluation',
  )


@needs_browser
def test_on_a_phone_nothing_is_fetched_or_cut_and_every_player_plays(tmp_path):
  page = a_report(tmp_path)
  found, refused = looked_at(page, tmp_path)
  assert not refused and not found['fetched']
  assert found['width'] == PHONE and found['scrolls'] <= PHONE and not found['wide']
  assert [player['duration'] for player in found['players']] == pytest.approx(
    [0.1, 0.2, 0.5, 0.2, 0.5], abs=0.002
  )
  for player in found['players']:
    assert player['error'] is None and player['reached'] == pytest.approx(
      player['duration'], abs=0.05
    )


@needs_browser
def test_this_test_sees_what_is_wrong(tmp_path):
  broken = (
    '<!DOCTYPE html><img src="http://192.0.2.1/a.png"><div style="width:500px">wide</div>'
    '<audio src="data:audio/wav;base64,UklGRg=="></audio>'
  )
  found, refused = looked_at(broken, tmp_path)
  assert (
    refused == ['http://192.0.2.1/a.png']
    and found['scrolls'] > PHONE
    and 'DIV.' in found['wide']
  )
  assert found['players'][0]['error'] and found['players'][0]['duration'] is None
