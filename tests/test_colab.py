"""The notebooks run from top to bottom, show what they promise and hold no results."""

import base64
from collections.abc import Iterator
import io
import os
import pathlib
import re
import sys

import nbclient
import nbformat
import numpy as np
from PIL import Image
import pytest
import samples
import soundfile

sys.path.insert(0, str(samples.ROOT / 'colab'))
import install

FILES = sorted((samples.ROOT / 'colab').glob('*.ipynb'))
NAMES = [path.stem for path in FILES]
EMBEDDED_MEDIA = re.compile(r'data:(image/png|audio/wav);base64,([A-Za-z0-9+/=]+)')
SECONDS = 900  # time limit of a cell; long, because the cores may be shared


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Returns a function that executes a notebook and returns it with its outputs.

  The notebook has a folder and a home of its own, and a clone, as it has for a user.
  """
  cache = os.environ.get('OMNI_JAX_TEST_CACHE', tmp_path_factory.mktemp('cache'))
  home = pathlib.Path(cache) / 'home'
  # The commands keep compiled programs in ~/.cache.
  home.mkdir(parents=True, exist_ok=True)

  def execute(name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(samples.ROOT / 'colab' / f'{name}.ipynb', as_version=4)
    environment = os.environ | {
      'PYTHONPATH': str(samples.ROOT),
      'HOME': str(home),
      'IPYTHONDIR': str(home / '.ipython'),
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(home / '.cache' / 'omni_jax' / 'xla'),
      'OMNI_JAX_NOTEBOOK_STEPS': '20',
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
      'MPLBACKEND': 'module://matplotlib_inline.backend_inline',
    }
    client = nbclient.NotebookClient(
      notebook,
      timeout=SECONDS,
      kernel_name='python3',
      resources={'metadata': {'path': str(tmp_path_factory.mktemp(name))}},
    )
    # Run the interpreter of the tests, whatever other kernels are installed.
    kernel = client.create_kernel_manager().kernel_spec
    kernel.argv[0] = sys.executable
    client.execute(env=environment)
    return notebook

  return execute


def outputs_after(
  notebook: nbformat.NotebookNode, heading: str
) -> list[nbformat.NotebookNode]:
  """Returns the outputs of the cells of one section."""
  outputs = []
  in_section = False
  for cell in notebook.cells:
    if cell.cell_type == 'markdown' and cell.source.startswith('## '):
      in_section = cell.source.startswith(f'## {heading}')
    elif in_section and cell.cell_type == 'code':
      outputs += cell.outputs
  return outputs


def media(outputs: list[nbformat.NotebookNode]) -> Iterator[tuple[str, bytes]]:
  """Yields kind and bytes of each picture and player: figures, and parts of replies."""
  for output in outputs:
    data = output.get('data', {})
    if 'image/png' in data:
      yield 'figure', base64.b64decode(data['image/png'])
    for kind, encoded in EMBEDDED_MEDIA.findall(data.get('text/html', '')):
      yield kind, base64.b64decode(encoded)


def files_of(outputs: list[nbformat.NotebookNode], kind: str) -> list[io.BytesIO]:
  """Returns the pictures or players of one kind, as open files."""
  return [io.BytesIO(data) for its_kind, data in media(outputs) if its_kind == kind]


def figures(outputs: list[nbformat.NotebookNode]) -> list[np.ndarray]:
  """Returns the figures as grey pixels; none of them may be empty."""
  pictures = []
  for file in files_of(outputs, 'figure'):
    pixels = np.asarray(Image.open(file).convert('L'))
    assert pixels.std() > 5, 'an empty figure'
    pictures.append(pixels)
  return pictures


def sounds(outputs: list[nbformat.NotebookNode]) -> list[np.ndarray]:
  """Returns the waves of the players; they must be finite and at 8 kHz."""
  waves = []
  for file in files_of(outputs, 'audio/wav'):
    wave, rate = soundfile.read(file)
    assert rate == 8000
    assert np.isfinite(wave).all()
    waves.append(wave)
  return waves


def printed(outputs: list[nbformat.NotebookNode]) -> str:
  """Returns all that the outputs print, as one text."""
  text = ''
  for output in outputs:
    text += output.get('text', '') or output.get('data', {}).get('text/plain', '')
  return text


def test_quickstart(run):
  notebook = run('quickstart')
  assert 'platform cpu' in printed(outputs_after(notebook, 'Where it runs'))
  assert 'omni step 20' in printed(outputs_after(notebook, 'Train'))
  assert len(figures(outputs_after(notebook, 'The losses'))) == 1
  draw = outputs_after(notebook, 'Draw')
  (drawing,) = files_of(draw, 'image/png')
  assert Image.open(drawing).size == (8, 8)
  assert len(figures(draw)) == 1
  assert len(sounds(outputs_after(notebook, 'Speak'))) == 1
  listen = outputs_after(notebook, 'Listen')
  assert len(sounds(listen)) == 1
  assert ' of 10:' in printed(listen)


def test_inside_the_sequence(run):
  notebook = run('inside_the_sequence')
  assert '<sot>' in printed(outputs_after(notebook, 'The grammar'))
  counts = {
    'The grammar': 1,
    'The attention mask': 1,
    'The place of a position': 1,
    'The experts of a position': 2,
  }
  for heading, count in counts.items():
    assert len(figures(outputs_after(notebook, heading))) == count, heading


def test_your_own_data(run):
  notebook = run('your_own_data')
  assert '264 files' in printed(outputs_after(notebook, 'The files'))
  assert 'train.jsonl' in printed(outputs_after(notebook, 'JSON lines'))
  train = outputs_after(notebook, 'Train')
  assert 'omni step 20' in printed(train)
  assert len(figures(train)) == 1
  ask = outputs_after(notebook, 'Prompt it')
  assert len(figures(ask)) == 2
  assert len(sounds(ask)) == 4
  assert 'of 24 right' in printed(ask)


def test_tpu(run):
  """On eight CPU devices, in the place of the eight chips of Kaggle's TPU."""
  notebook = run('tpu')
  assert '8 devices, platform cpu' in printed(outputs_after(notebook, 'The chips'))
  train = printed(outputs_after(notebook, 'Train'))
  assert 'stage omni on 8 x cpu' in train
  assert 'omni step 20' in train
  speed = outputs_after(notebook, 'Speed')
  assert 'tokens_per_second' in printed(speed)
  assert len(figures(speed)) == 1
  assert '.xplane.pb' in printed(outputs_after(notebook, 'The trace'))
  replies = outputs_after(notebook, 'Draw and speak')
  assert len(figures(replies)) == 1
  assert len(sounds(replies)) == 1


def test_every_notebook_has_a_test():
  for name in NAMES:
    assert f'test_{name}' in globals()


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_notebooks_are_committed_without_results(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert notebook.metadata.kernelspec.name == 'python3'
  for cell in notebook.cells:
    if cell.cell_type != 'markdown':
      assert cell.outputs == [], cell.id
      assert cell.execution_count is None, cell.id
    assert len(cell.source.splitlines()) <= 25, f'{cell.id} is too long to read'


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_all_notebooks_have_the_same_setup_and_the_address_of_the_project(path):
  """Badges and clones use the repository's address from pyproject.toml."""
  project = (samples.ROOT / 'pyproject.toml').read_text()
  address = re.search(r'Repository = "https://github.com/(.+)"', project)[1]
  first, _, setup, *_ = nbformat.read(path, as_version=4).cells
  _, _, expected_setup, *_ = nbformat.read(FILES[0], as_version=4).cells
  colab = 'https://colab.research.google.com/github'
  assert f'{colab}/{address}/blob/main/colab/{path.name})' in first.source
  assert f"REPOSITORY = 'https://github.com/{address}'" in setup.source
  assert setup.source == expected_setup.source


@pytest.mark.parametrize(
  'installed, missing, kept',
  [
    ({}, ['jax>=0.10.2', 'flax>=0.12.0'], []),
    (
      {'jax': '0.10.2', 'jaxlib': '0.10.2', 'flax': '0.12.8'},
      [],
      ['jax==0.10.2', 'jaxlib==0.10.2'],
    ),
    (
      {'jax': '0.12.0', 'libtpu': '0.0.50', 'jaxtyping': '0.3'},
      ['flax>=0.12.0'],
      ['jax==0.12.0', 'libtpu==0.0.50'],
    ),
    (
      {'jax': '0.12.0', 'jax-cuda13-plugin': '0.12.0', 'flax': '0.10.0'},
      ['flax>=0.12.0'],
      ['jax==0.12.0', 'jax-cuda13-plugin==0.12.0'],
    ),
    ({'jax': '0.7.2', 'libtpu': '0.0.20', 'flax': '0.12.0'}, ['jax[tpu]>=0.10.2'], []),
    (
      {
        'jax': '0.7.2',
        'jax-cuda12-plugin': '0.7.2',
        'jax-cuda12-pjrt': '0.7.2',
        'flax': '0.12.0',
      },
      ['jax[cuda12]>=0.10.2'],
      [],
    ),
  ],
  ids=['nothing', 'cpu', 'tpu', 'gpu', 'old tpu', 'old gpu'],
)
def test_an_installed_jax_is_kept(installed, missing, kept):
  wanted = ['jax>=0.10.0', 'flax>=0.12.0', "pywin32; sys_platform == 'win32'"]
  assert install.plan(wanted, installed) == (missing, kept)


def test_nothing_is_installed_if_nothing_is_missing(capsys, monkeypatch):
  nothing_missing = install.Plan([], ['jax==1'])
  refuse = lambda *_, **__: pytest.fail('pip was called')
  monkeypatch.setattr(install, 'plan', lambda wanted, installed: nothing_missing)
  monkeypatch.setattr(install.subprocess, 'run', refuse)
  assert install.main() == 0
  assert 'kept: jax==1' in capsys.readouterr().out
