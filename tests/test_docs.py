"""Files that the documentation cites exist, and so do the names in them."""

import ast
from collections.abc import Iterator
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
SOURCES = sorted((ROOT / 'omni_jax').rglob('*.py'))
FOLDERS = ('omni_jax', 'configs', 'colab', 'docs', 'launch', 'tests')
FILES = {path for folder in FOLDERS for path in (ROOT / folder).rglob('*.*')}
FILES |= set(ROOT.glob('*.*'))
NAMES = {path.name for path in FILES}

# A path with a folder counts anywhere in prose; the bare name of a Python file counts
# only in backticks.
PATH = re.compile(r'[\w./{},-]*/[\w./{},-]*\.(?:py|md)\b')
BARE_NAME = re.compile(r'(?<=`)\w+\.py(?=[`:])')
PAGE_NAME = re.compile(r'(?<![\w/])\w+\.md\b')
SYMBOL = re.compile(r'`([\w./]+\.py): (\w+)')
PLACEHOLDER = re.compile(r'(?:^|/)[A-Z]+(?=[./]|$)')  # modalities/NAME/host.py


every_file = pytest.mark.parametrize(
  'path', PAGES + SOURCES, ids=lambda path: str(path.relative_to(ROOT))
)


def prose(path: pathlib.Path) -> str:
  """Returns a page's text, or the docstrings and comments of a source file."""
  text = path.read_text()
  if path.suffix == '.md':
    return text
  parts = []
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      parts.append(ast.get_docstring(node) or '')
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      parts.append(token.string)
  return '\n'.join(parts)


def citations(text: str) -> Iterator[str]:
  """Yields the paths that a text cites, without those that have a placeholder."""
  for pattern in (PATH, BARE_NAME, PAGE_NAME):
    for path in pattern.findall(text):
      if not PLACEHOLDER.search(path):
        yield path


def find(citation: str, citing: pathlib.Path) -> pathlib.Path | None:
  """Returns the cited file, relative to the root, the package or the citing file."""
  for folder in (ROOT, ROOT / 'omni_jax', citing.parent):
    path = (folder / citation).resolve()
    if path in FILES:
      return path
  return None


@pytest.mark.parametrize(
  'text, paths',
  [
    (
      '`nn/experts.py` and (tests/nn/test_moe.py)',
      ['nn/experts.py', 'tests/nn/test_moe.py'],
    ),
    ('`pack.py: _positions`', ['pack.py']),
    ('see ../shared/notes.md, or design.md', ['../shared/notes.md', 'design.md']),
    ('`--config=configs/F.py`, `modalities/NAME/host.py`', []),
    ('[ours](results.md#loading)', ['results.md']),
    ('a file called setup.py', []),
  ],
)
def test_citations_are_found(text, paths):
  assert list(citations(text)) == paths


@every_file
def test_cited_files_are_in_the_repository(path):
  for citation in citations(prose(path)):
    is_known_name = '/' not in citation and citation in NAMES
    exists = is_known_name or find(citation, path)
    assert exists, f'{citation} is not a file of the repository'


@every_file
def test_cited_names_are_in_their_files(path):
  """The citation `FILE.py: NAME` promises that NAME is in FILE.py."""
  for citation, name in SYMBOL.findall(prose(path)):
    file = find(citation, path)
    if file:
      assert re.search(rf'\b{name}\b', file.read_text()), f'{citation} has no {name}'
