"""Checks the structure of the package: its imports, the place of names, and sizes.

A room is a folder or a top-level module of the package.
"""

import ast
import io
import pathlib
import re
import subprocess
import sys
import tokenize
from typing import TypeVar

import pytest

T = TypeVar('T')
ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'omni_jax'
FILES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob('*.py'))
TREES = {path: ast.parse((ROOT / path).read_text()) for path in FILES}
NAMES = {
  '.'.join(path.with_suffix('').parts).removesuffix('.__init__'): path for path in FILES
}

# The rooms that each room may import (design.md, section 1). The room `host` is the
# numpy side of the modalities.
HOST_FILES = ('host', 'hosts', 'contract', 'sizes', 'files', 'augment', 'tokenizer')
HOST = {'errors', 'paths', 'retry', 'types', 'host'}
DEVICE = {'errors', 'types', 'sharding', 'nn', 'host', 'modalities'}
MODEL = DEVICE | {'command_line', 'paths', 'retry', 'config', 'model'}
MAY_IMPORT = {
  'errors': set(),
  'paths': {'errors'},
  'retry': set(),
  'line_file': {'paths', 'retry'},
  'board': {'paths', 'retry'},
  'mirror': {'paths', 'retry'},
  'command_line': {'errors'},
  'types': set(),
  'chips': set(),
  'cli': {'errors'},
  'run_log': {'line_file'},
  'run_folder': {'line_file', 'paths'},
  'across_processes': {'sharding'},
  'host': {'errors', 'types'},
  'config': {'command_line', 'errors', 'paths', 'types', 'host'},
  'sequence': HOST,
  'data': HOST | {'config', 'mirror', 'sequence'},
  'sharding': {'errors'},
  'nn': {'sharding'},
  'modalities': DEVICE - {'modalities'},
  'model': DEVICE | {'config'},
  'objective': DEVICE | {'model'},
  'checkpoint': MODEL | {'across_processes', 'run_log', 'run_folder'},
  'convert': HOST | {'mirror', 'config', 'sequence', 'data', 'model', 'checkpoint'},
  'generate': MODEL | {'sequence', 'checkpoint'},
  'evaluate': MODEL
  | {'board', 'run_folder', 'sequence', 'data', 'generate', 'checkpoint', 'omni_jax'},
  'train': MODEL
  | {
    'across_processes',
    'board',
    'chips',
    'line_file',
    'run_log',
    'run_folder',
    'objective',
    'data',
    'sequence',
    'checkpoint',
    'evaluate',
  },
  'omni_jax': {'generate'},
  'inspect_data': MODEL | {'data', 'sequence', 'evaluate', 'train'},
  'compile': MODEL | {'chips', 'sequence', 'train', 'generate', 'checkpoint'},
  'bench': MODEL | {'chips', 'data', 'objective', 'sequence', 'checkpoint', 'train'},
}
# Further rooms that a room's command may import; nothing imports a command.
COMMAND_MAY_IMPORT = {'generate': {'data'}}  # a prompt is read like a line of data
WITHOUT_JAX = HOST | {
  'board',
  'line_file',
  'run_folder',
  'config',
  'sequence',
  'data',
  'convert',
}
# Files of these rooms that may import jax, because no host code loads them.
WITH_JAX = {
  pathlib.Path('omni_jax/data/loader.py'),
  pathlib.Path('omni_jax/convert/codes.py'),
}
BEAM = {
  pathlib.Path('omni_jax/convert/beam.py'),
  pathlib.Path('omni_jax/convert/beam_files.py'),
}
CONFIG = pathlib.Path('omni_jax/config.py')  # runs config files, reads passed flags
COMMAND_LINE = pathlib.Path('omni_jax/command_line.py')  # helps all commands
PEERS = pathlib.Path('omni_jax/bench/peers.py')  # measures PyTorch's DataLoader
RIVAL = pathlib.Path('omni_jax/bench/hf_step.py')
ORBAX_BENCH = pathlib.Path('omni_jax/bench/checkpoint.py')  # compares with Orbax
TFDS = pathlib.Path('omni_jax/data/sources/tfds.py')
SEQIO = pathlib.Path('omni_jax/convert/formats/seqio.py')
JAX_MODULES = {'jax', 'flax', 'optax', 'grain', 'orbax'}
FLAG_MODULES = {'argparse', 'absl.flags', 'absl.app', 'ml_collections.config_flags'}
AXES = {'data', 'fsdp', 'expert', 'tensor', 'context'}
# `data` is an ordinary word, and `expert` is a logical axis, too.
UNAMBIGUOUS_AXES = AXES - {'data', 'expert'}
# Functions and classes that take names of mesh axes.
PLACING = {
  'P',
  'PartitionSpec',
  'NamedSharding',
  'Mesh',
  'make_mesh',
  'axis_index',
  'axis_size',
  'all_gather',
  'all_to_all',
  'ragged_all_to_all',
  'psum',
  'pmean',
  'pmax',
  'psum_scatter',
  'ppermute',
}
MAX_LINES = 450
MAX_FUNCTION = 80
MAX_ARGUMENTS = 8

every_file = pytest.mark.parametrize('path', FILES, ids=str)


def room(path: pathlib.Path) -> str:
  """Returns the room of a file."""
  parts = path.with_suffix('').parts
  if parts[-1] in HOST_FILES and parts[1] == 'modalities':
    return 'host'
  return parts[1] if parts[1:] != ('__init__',) else 'omni_jax'


def imports(tree: ast.AST) -> set[str]:
  """Returns the dotted names of all imports, at the top or inside a function."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'line {node.lineno}: relative import'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def packages_imported(tree: ast.AST) -> set[str]:
  """Returns the first components of the names of all imports."""
  return {name.split('.')[0] for name in imports(tree)}


def modules_imported(tree: ast.AST) -> set[pathlib.Path]:
  """Returns the imported files of the package.

  `a.b.C` is in a/b.py; `a.b` is a/b.py or a/b/__init__.py.
  """
  paths = set()
  for name in imports(tree):
    if name.split('.')[0] == 'omni_jax':
      paths.add(NAMES.get(name) or NAMES[name.rpartition('.')[0]])
  return paths


def top_level(tree: ast.Module) -> ast.Module:
  """Returns only the imports that happen when the file is loaded."""
  kinds = (ast.Import, ast.ImportFrom)
  return ast.Module([node for node in tree.body if isinstance(node, kinds)], [])


def calls(tree: ast.AST) -> list[ast.Call]:
  """Returns all calls in a tree."""
  return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name_called(call: ast.Call) -> str:
  """Returns the last component of the name of the function that is called, or ''."""
  if isinstance(call.func, ast.Attribute):
    return call.func.attr
  return getattr(call.func, 'id', '')


def strings(tree: ast.AST) -> set[str]:
  """Returns all string constants in a tree."""
  constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
  return {node.value for node in constants if isinstance(node.value, str)}


@every_file
def test_imports_point_one_way(path):
  own = room(path)
  modules = modules_imported(TREES[path])
  allowed = {own} | MAY_IMPORT[own]
  if path.name == '__main__.py':
    allowed |= COMMAND_MAY_IMPORT.get(own, set())
  rooms = {room(module) for module in modules}
  assert rooms <= allowed, f'{path} imports {rooms - allowed}'
  commands = {module for module in modules if module.name == '__main__.py'}
  assert not commands or path.name == '__main__.py', f'{path} imports {commands}'


def in_cycles(imported: dict[T, set[T]]) -> set[T]:
  """Returns the nodes of a graph of imports that are in a cycle or above one."""
  remaining = {name: others - {name} for name, others in imported.items()}
  while True:
    free = [name for name, others in remaining.items() if not others & remaining.keys()]
    if not free:
      return set(remaining)
    for name in free:
      del remaining[name]


def test_rooms_have_no_cycle():
  assert not in_cycles(MAY_IMPORT)


def test_files_have_no_cycle():
  imported = {path: modules_imported(top_level(tree)) for path, tree in TREES.items()}
  assert not in_cycles(imported)


@every_file
def test_host_side_has_no_jax(path):
  tree = TREES[path]
  if path.name == '__main__.py':
    tree = top_level(tree)  # commands report mistakes before they load jax
  elif room(path) not in WITHOUT_JAX or path in WITH_JAX:
    return
  assert not packages_imported(tree) & JAX_MODULES


@every_file
def test_orbax_grain_beam_and_tensorflow_are_where_they_belong(path):
  packages = packages_imported(TREES[path])
  if room(path) != 'checkpoint' and path != ORBAX_BENCH:
    assert 'orbax' not in packages
  if path.name != 'loader.py':
    assert 'grain' not in packages
  if path != TFDS:
    assert not packages & {'tensorflow', 'tensorflow_datasets'}
  if path != SEQIO:
    assert not packages & {'seqio', 'importlib'}
  if path != CONFIG:
    assert 'runpy' not in packages
  if path not in BEAM:
    assert 'apache_beam' not in packages
  if path not in (PEERS, RIVAL):
    assert 'torch' not in packages


@every_file
def test_only_sharding_names_mesh_axes(path):
  if room(path) == 'sharding':
    return
  tree = TREES[path]
  assert not strings(tree) & UNAMBIGUOUS_AXES
  assert not any(name.endswith('.PartitionSpec') for name in imports(tree))
  for call in calls(tree):
    name = name_called(call)
    if name in PLACING:
      assert not strings(call) & AXES, f'line {call.lineno}: {name} names a mesh axis'
  for node in ast.walk(tree):
    if isinstance(node, ast.Subscript):
      is_mesh_shape = ast.unparse(node.value).endswith('mesh.shape')
      if is_mesh_shape:
        assert not strings(node.slice) & AXES, (
          f'line {node.lineno}: {ast.unparse(node)} names a mesh axis'
        )


@every_file
def test_only_commands_read_flags(path):
  """Only commands define flags; `config.read_config` reads those passed to it."""
  tree = TREES[path]
  modules = imports(tree) & FLAG_MODULES
  if path == COMMAND_LINE:
    assert modules == {'absl.flags'}
    assert not any('DEFINE' in ast.unparse(call.func) for call in calls(tree))
    return
  if path == CONFIG:
    assert modules == {'absl.flags'}
    assert not any('DEFINE' in ast.unparse(call.func) for call in calls(tree))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    uses = {node.attr for node in attributes if ast.unparse(node.value) == 'flags'}
    assert uses <= {'FlagValues', 'Error'}, 'reads the flags of all commands'
    return
  text = (ROOT / path).read_text()
  if modules or 'sys.argv' in text:
    assert "if __name__ == '__main__':" in text


@every_file
def test_files_functions_and_signatures_are_small(path):
  lines = (ROOT / path).read_text().splitlines()
  assert len(lines) <= MAX_LINES
  assert path.stem not in ('utils', 'util', 'common', 'helpers', 'misc')
  for node in ast.walk(TREES[path]):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      length = node.end_lineno - node.lineno + 1
      assert length <= MAX_FUNCTION, f'{node.name} is too long'
      arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
      names = {argument.arg for argument in arguments} - {'self', 'cls'}
      assert len(names) <= MAX_ARGUMENTS, f'{node.name} has {len(names)} arguments'


# Words that name a medium, and folders that are about media, where they belong.
MEDIUM = re.compile(
  '(?<![a-z])(images?|audios?|videos?|sounds?|speech|pictures?|clips?|spoken|heard'
  '|drawn|seen|codecs?|waves?|pixels?|latents?|mels?)(?![a-z])',
  re.IGNORECASE,
)
ABOUT_MEDIA = {
  'modalities',
  'evaluate',
  'configs',
  'sources',
  'ready',
  'inputs',
  'formats',
  'weights',
}
MEDIUM_LINES = 150
MEDIUM_FILES = 14
NO_CODE = (
  tokenize.COMMENT,
  tokenize.NL,
  tokenize.NEWLINE,
  tokenize.INDENT,
  tokenize.DEDENT,
  tokenize.ENCODING,
  tokenize.ENDMARKER,
)


def docstring_lines(tree: ast.AST) -> set[int]:
  """Returns the numbers of the lines that belong to docstrings."""
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  lines = set()
  for node in ast.walk(tree):
    if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
      first = node.body[0]
      lines |= set(range(first.lineno, first.end_lineno + 1))
  return lines


def lines_with_a_medium(path: pathlib.Path) -> list[str]:
  """Returns the lines of code, without comments and docstrings, that name a medium."""
  text = (ROOT / path).read_text()
  source = text.splitlines()
  numbers = set()
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type not in NO_CODE:
      numbers.add(token.start[0])
  lines = []
  for number in sorted(numbers - docstring_lines(TREES[path])):
    code = source[number - 1].split('#')[0]
    if MEDIUM.search(code):
      lines.append(code.strip())
  return lines


def test_few_lines_outside_of_the_media_name_a_medium():
  """A file with only one or two such lines does not count."""
  lines_by_path = {}
  for path in FILES:
    lines = lines_with_a_medium(path)
    is_about_media = ABOUT_MEDIA & set(path.with_suffix('').parts)
    if len(lines) > 2 and not is_about_media:
      lines_by_path[path] = lines
  count = lambda path: len(lines_by_path[path])
  for path in sorted(lines_by_path, key=count, reverse=True)[:8]:
    print(count(path), path, *lines_by_path[path], sep='\n  ')
  assert sum(map(count, lines_by_path)) <= MEDIUM_LINES
  assert len(lines_by_path) <= MEDIUM_FILES


@every_file
def test_every_file_has_a_docstring(path):
  if (ROOT / path).read_text():
    assert ast.get_docstring(TREES[path]), (
      'add a module docstring whose first line could stand in the README'
    )


def test_the_package_loads_fast_and_without_tensorflow():
  """A finder in front of all others records attempts to import TensorFlow.

  So the test also works where TensorFlow is not installed.
  """
  without_jax = []
  for name, path in NAMES.items():
    if room(path) in WITHOUT_JAX and path not in WITH_JAX:
      without_jax.append(name)
  code = f"""
import sys, time
attempts = []
class Watch:
  def find_spec(self, name, path=None, target=None):
    if name == 'tensorflow':
      attempts.append(name)
sys.meta_path.insert(0, Watch())
before = time.process_time()
import omni_jax
seconds = time.process_time() - before
assert seconds < 0.5, seconds
assert not [m for m in ('jax', 'flax', 'grain') if m in sys.modules]
import {', '.join(sorted(without_jax))}
loaded = [m for m in ('jax', 'flax', 'grain') if m in sys.modules]
assert not loaded, loaded
import omni_jax.train.stages, omni_jax.evaluate.run
assert not attempts, attempts
"""
  command = [sys.executable, '-c', code]
  result = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert not result.returncode, result.stderr
