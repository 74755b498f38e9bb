"""Opens the report in a real browser.

Nothing is fetched, nothing scrolls sideways on a phone, and every player plays.
"""

from collections.abc import Iterator
from concurrent.futures import Future, TimeoutError
import contextlib
import http.server
import json
import shutil
import subprocess
import threading
from typing import Any, NamedTuple

from etils import epath
import numpy as np
import pytest

from omni_jax.evaluate.metrics.targets import TARGETS
from omni_jax.evaluate.page import report
from omni_jax.evaluate.page.gallery import Example, Gallery, SpokenWord
from omni_jax.evaluate.page.page_media import Media, PagePart

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
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
PHONE = 390  # width in pixels
SECONDS = 90  # longest wait for the browser on a busy machine

# A frame as wide as a phone, since a headless window is at least 500 pixels wide. It
# reports what it observes to /observed, and does not change the page in it.
FRAME = """<!DOCTYPE html>
<iframe width="PHONE" height="844" style="border:0"></iframe>
<script>
const frame = document.querySelector('iframe');

async function play(sound) {
  if (sound.readyState < 1) {
    await new Promise(done => {
      sound.onloadedmetadata = sound.onerror = done;
      sound.load();
    });
  }
  sound.muted = true;
  const ended = () => new Promise(done => { sound.onended = () => done(null); });
  const error = await sound.play().then(ended, String);
  return {
    duration: sound.duration,
    reached: sound.currentTime,
    error: error || (sound.error && sound.error.message),
  };
}

frame.onload = async () => {
  const page = frame.contentDocument;
  const root = page.documentElement;
  const width = root.clientWidth;
  const outside = e =>
    !e.closest('.wide') && e.getBoundingClientRect().right > width + 0.5;
  const wide = [...page.querySelectorAll('body *')].filter(outside);
  const players = await Promise.all([...page.querySelectorAll('audio')].map(play));
  const resources = frame.contentWindow.performance.getEntriesByType('resource');
  const observed = {
    players,
    width,
    scrolls: root.scrollWidth,
    wide: wide.map(e => e.tagName + '.' + e.className),
    fetched: resources.map(e => e.name),
  };
  fetch('/observed', {method: 'POST', body: JSON.stringify(observed)});
};
frame.src = '/report.html';
</script>""".replace('PHONE', str(PHONE))
# What is not in the page itself is refused, and reported to /refused.
POLICY = (
  "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
  'report-uri /refused'
)


class Server(NamedTuple):
  """A server of the page and the frame around it.

  Attributes:
    address: its URL.
    observed: what the frame reports.
    refused: the addresses that the page tried to load.
  """

  address: str
  observed: Future
  refused: list[str]


@contextlib.contextmanager
def serve(page: str) -> Iterator[Server]:
  """Serves the page and the frame around it."""
  observed = Future()
  refused = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      body = {'/': FRAME, '/report.html': page}.get(self.path)
      self.send_response(404 if body is None else 200)
      self.send_header('Content-Type', 'text/html; charset=utf-8')
      if self.path == '/report.html':
        self.send_header('Content-Security-Policy', POLICY)
      self.end_headers()
      self.wfile.write((body or '').encode())

    def do_POST(self):
      length = int(self.headers['Content-Length'])
      message = json.loads(self.rfile.read(length))
      self.send_response(204)
      self.end_headers()
      if self.path == '/refused':
        refused.append(message['csp-report']['blocked-uri'])
      elif not observed.done():
        observed.set_result(message)

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield Server(f'http://127.0.0.1:{server.server_port}/', observed, refused)
  finally:
    server.shutdown()
    server.server_close()


def observe(page: str, folder: epath.PathLike) -> tuple[dict[str, Any], list[str]]:
  """Returns what the frame observes, and the addresses that the page tried to load."""
  with serve(page) as server:
    command = [
      CHROMIUM,
      *FLAGS,
      f'--user-data-dir={folder}/profile',
      '--remote-debugging-port=0',
      server.address,
    ]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    browser = subprocess.Popen(command, **quiet)
    try:
      return server.observed.result(SECONDS), server.refused
    except TimeoutError:
      pytest.fail(
        f'{CHROMIUM} reported nothing within {SECONDS} s (exit code {browser.poll()})'
      )
    finally:
      browser.kill()
      browser.wait()


def full_metrics():
  """Returns metrics that fill every section, with numbers as long as they get."""
  perfect = {'accuracy': 1.0, 'language_accuracy': 1.0}
  entry = {
    'accuracy': 1.0,
    'interval': [0.999, 1.0],
    'n': 10_000,
    'language_accuracy': 1.0,
    'voice_accuracy': 1.0,
    'diversity': 0.8,
    'unseen_voices': perfect,
    'known_voices': perfect,
    'judge_accuracy_real': 1.0,
    'language_judge_accuracy_real': 1.0,
    'voice_judge_accuracy_real': 1.0,
    'confusion': (np.eye(10, 11) * 10_000).tolist(),
  }
  group = {'n': 10_000, 'loss': {'text': 1.23456}, 'exact_match': 0.98765}
  codec = {
    'perplexity': [255.5] * 8,
    'perplexity_ratio': 0.5,
    'codebook_size': 256,
    'mel_distance': 0.25,
    'si_snr': -28.0,
    'stoi': 0.84,
    'n': 100,
    'judge_accuracy_original': 1.0,
    'judge_accuracy_reconstructed': 1.0,
  }
  long_name = 'image+text+speech_to_text+image+speech' * 2
  shares = dict.fromkeys(('text', 'image', 'audio'), [1 / 32] * 32)
  return {
    'step': 1_234_567,
    'seconds': 123.0,
    'train_minutes': 17.9,
    'directions': dict.fromkeys(TARGETS, entry),
    'data': {'groups': {long_name: group}, 'targets': {}},
    'codec': codec,
    'routing': {'expert_by_modality': shares},
  }


def sound(samples):
  wave = np.sin(np.arange(samples) / 3).astype(np.float32) / 2
  return PagePart('audio', wave=wave, rate=8000)


def full_gallery():
  """Returns a gallery that fills every section, with words as long as they get."""
  pixels = np.random.default_rng(0).random((8, 8, 1), np.float32)
  picture = PagePart('image', pixels=pixels)
  long = PagePart('text', text='Donaudampfschifffahrtsgesellschaftskapitän' * 3)
  prompt = [sound(800), long]
  reply = [sound(1600), picture]
  example = Example('speech_to_speech', 'digit 7, en', prompt, reply, True)
  free_reply = [long, picture, sound(4000)]
  free = Example('any', 'reply in en', [long], free_reply, None)
  rows = [[pixels] * 10] * 6
  spoken = SpokenWord('siebenundzwanzig (de, voice Denis)', sound(1600), sound(4000))
  return Gallery([example], [free], rows, rows, [spoken])


def full_report(folder):
  records = []
  for k in range(9):
    records.append({'stage': 'omni', 'seconds': 60 * k, 'loss/text': 2.0 / (k + 1)})
  (folder / 'media').mkdir()
  media = Media(epath.Path(folder / 'media'))
  title = 'omni_jax: evaluation'
  return report.render(full_metrics(), full_gallery(), records, media, title=title)


@needs_browser
def test_on_a_phone_nothing_is_fetched_or_cut_and_every_player_plays(tmp_path):
  page = full_report(tmp_path)
  observed, refused = observe(page, tmp_path)
  assert not refused
  assert not observed['fetched']
  assert observed['width'] == PHONE
  assert observed['scrolls'] <= PHONE
  assert not observed['wide']
  durations = [player['duration'] for player in observed['players']]
  assert durations == pytest.approx([0.1, 0.2, 0.5, 0.2, 0.5], abs=0.002)
  for player in observed['players']:
    assert player['error'] is None
    assert player['reached'] == pytest.approx(player['duration'], abs=0.05)


@needs_browser
def test_the_faults_of_a_broken_page_are_noticed(tmp_path):
  broken = (
    '<!DOCTYPE html><img src="http://192.0.2.1/a.png"><div style="width:500px">wide'
    '</div><audio src="data:audio/wav;base64,UklGRg=="></audio>'
  )
  observed, refused = observe(broken, tmp_path)
  assert refused == ['http://192.0.2.1/a.png']
  assert observed['scrolls'] > PHONE
  assert 'DIV.' in observed['wide']
  (player,) = observed['players']
  assert player['error']
  assert player['duration'] is None
