"""What the documentation cites is there: files, and names in them."""

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

# A path: with a folder anywhere in prose; a bare name of a Python file in backticks.
PATH = re.compile(r'[\w./{},-]*/[\w./{},-]*\.(?:py|md)\b')
BARE_NAME = re.compile(r'(?<=`)\w+\.py(?=[`:])')
PAGE_NAME = re.compile(r'(?<![\w/])\w+\.md\b')
SYMBOL = re.compile(r'`([\w./]+\.py): (\w+)')
PLACEHOLDER = re.compile(r'(?:^|/)[A-Z]+(?=[./]|$)')  # modalities/NAME/host.py


def prose(path: pathlib.Path) -> str:
  """Returns a page's text, or the docstrings and comments of a source file."""
  text = path.read_text()
  if path.suffix == '.md':
    return text
  docstrings = [
    ast.get_docstring(node) or ''
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
  ]
  comments = [
    token.string
    for token in tokenize.generate_tokens(io.StringIO(text).readline)
    if token.type == tokenize.COMMENT
  ]
  return '\n'.join(docstrings + comments)


def citations(text: str) -> Iterator[str]:
  """Yields the paths that a text cites, without those that stand for any name."""
  for pattern in (PATH, BARE_NAME, PAGE_NAME):
    for path in pattern.findall(text):
      if not PLACEHOLDER.search(path):
        yield path


def find(citation: str, citing: pathlib.Path) -> pathlib.Path | None:
  """Returns the file that is meant, by the root, the package or the citing folder."""
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


@pytest.mark.parametrize(
  'path', PAGES + SOURCES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_cited_files_are_in_the_repository(path):
  for citation in citations(prose(path)):
    is_there = find(citation, path) or ('/' not in citation and citation in NAMES)
    assert is_there, f'{citation} is no file of the repository'


@pytest.mark.parametrize(
  'path', PAGES + SOURCES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_cited_names_are_in_their_files(path):
  """`FILE.py: NAME` says that NAME is in FILE.py."""
  for citation, name in SYMBOL.findall(prose(path)):
    file = find(citation, path)
    if file:
      assert re.search(rf'\b{name}\b', file.read_text()), f'{citation} has no {name}'
