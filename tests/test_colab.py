"""The notebooks run from top to bottom and show what they promise; as committed they hold no results."""

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
OUTPUT_SIGNS = re.compile(r'data:(image/png|audio/wav);base64,([A-Za-z0-9+/=]+)')
SECONDS = 900  # of one cell: the cores may be shared


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Executes a notebook in a folder of its own, as a user with a home and a clone would; returns it with its outputs."""
  home = (
    pathlib.Path(
      os.environ.get('OMNI_JAX_TEST_CACHE', tmp_path_factory.mktemp('cache'))
    )
    / 'home'
  )
  home.mkdir(
    parents=True, exist_ok=True
  )  # the commands keep compiled programs in ~/.cache

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
    # The interpreter that runs the tests, whatever kernels are installed beside it.
    client.create_kernel_manager().kernel_spec.argv[0] = sys.executable
    client.execute(env=environment)
    return notebook

  return execute


def outputs_after(
  notebook: nbformat.NotebookNode, heading: str
) -> list[nbformat.NotebookNode]:
  """What the cells of one section printed and showed."""
  found, here = [], False
  for cell in notebook.cells:
    if cell.cell_type == 'markdown' and cell.source.startswith('## '):
      here = cell.source.startswith(f'## {heading}')
    elif here and cell.cell_type == 'code':
      found += cell.outputs
  return found


def media(outputs: list[nbformat.NotebookNode]) -> Iterator[tuple[str, bytes]]:
  """Kind and bytes of every picture and player: figures, and parts that show themselves."""
  for output in outputs:
    data = output.get('data', {})
    if 'image/png' in data:
      yield 'figure', base64.b64decode(data['image/png'])
    for kind, encoded in OUTPUT_SIGNS.findall(data.get('text/html', '')):
      yield kind, base64.b64decode(encoded)


def figures(outputs) -> list[np.ndarray]:
  found = [
    np.asarray(Image.open(io.BytesIO(data)).convert('L'))
    for kind, data in media(outputs)
    if kind == 'figure'
  ]
  assert all(pixels.std() > 5 for pixels in found), 'an empty figure'
  return found


def sounds(outputs) -> list[np.ndarray]:
  found = [
    soundfile.read(io.BytesIO(data))
    for kind, data in media(outputs)
    if kind == 'audio/wav'
  ]
  assert all(rate == 8000 and np.isfinite(wave).all() for wave, rate in found)
  return [wave for wave, _ in found]


def printed(outputs) -> str:
  return ''.join(
    output.get('text', '') or output.get('data', {}).get('text/plain', '')
    for output in outputs
  )


def test_quickstart(run):
  done = run('quickstart')
  assert 'platform cpu' in printed(outputs_after(done, 'Where it runs'))
  assert 'omni step 20' in printed(outputs_after(done, 'Train'))
  assert len(figures(outputs_after(done, 'The losses'))) == 1
  drawn = [
    data for kind, data in media(outputs_after(done, 'Draw')) if kind == 'image/png'
  ]
  assert len(drawn) == 1 and Image.open(io.BytesIO(drawn[0])).size == (8, 8)
  assert len(figures(outputs_after(done, 'Draw'))) == 1
  assert len(sounds(outputs_after(done, 'Speak'))) == 1
  assert len(sounds(outputs_after(done, 'Listen'))) == 1 and ' of 10:' in printed(
    outputs_after(done, 'Listen')
  )


def test_inside_the_sequence(run):
  done = run('inside_the_sequence')
  assert '<sot>' in printed(outputs_after(done, 'The grammar'))
  assert [
    len(figures(outputs_after(done, heading)))
    for heading in (
      'The grammar',
      'Who looks at whom',
      'Where a position stands',
      'Which experts',
    )
  ] == [1, 1, 1, 2]


def test_your_own_data(run):
  done = run('your_own_data')
  assert '264 files' in printed(
    outputs_after(done, 'The files')
  ) and 'train.jsonl' in printed(outputs_after(done, 'JSON lines'))
  assert (
    'omni step 20' in printed(outputs_after(done, 'Train'))
    and len(figures(outputs_after(done, 'Train'))) == 1
  )
  asked = outputs_after(done, 'Ask it')
  assert (
    len(figures(asked)) == 2
    and len(sounds(asked)) == 4
    and 'of 24 right' in printed(asked)
  )


def test_every_notebook_has_a_test():
  assert (
    sorted(
      name.removeprefix('test_')
      for name in globals()
      if name.removeprefix('test_') in NAMES
    )
    == NAMES
  )


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_committed_without_results(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert notebook.metadata.kernelspec.name == 'python3'
  for cell in notebook.cells:
    assert cell.cell_type == 'markdown' or (
      cell.outputs == [] and cell.execution_count is None
    ), cell.id
    assert len(cell.source.splitlines()) <= 25, cell.id  # no walls of code


@pytest.mark.parametrize('path', FILES, ids=NAMES)
def test_one_address_and_one_setup(path):
  """The repository's address stands in pyproject.toml; badges and clones say the same."""
  address = re.search(
    r'Repository = "https://github.com/(.+)"',
    (samples.ROOT / 'pyproject.toml').read_text(),
  )[1]
  first, _, setup, *_ = nbformat.read(path, as_version=4).cells
  assert (
    f'https://colab.research.google.com/github/{address}/blob/main/colab/{path.name})'
    in first.source
  )
  assert f"REPOSITORY = 'https://github.com/{address}'" in setup.source
  assert setup.source == nbformat.read(FILES[0], as_version=4).cells[2].source


@pytest.mark.parametrize(
  'have, missing, kept',
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
def test_a_jax_that_is_there_stays(have, missing, kept):
  wanted = ['jax>=0.10.0', 'flax>=0.12.0', "pywin32; sys_platform == 'win32'"]
  assert install.plan(wanted, have) == (missing, kept)


def test_nothing_is_installed_where_all_is_there(capsys, monkeypatch):
  monkeypatch.setattr(
    install, 'plan', lambda wanted, have: install.Plan([], ['jax==1'])
  )
  monkeypatch.setattr(
    install.subprocess, 'run', lambda *_, **__: pytest.fail('pip was called')
  )
  assert install.main() == 0 and 'stays: jax==1' in capsys.readouterr().out
