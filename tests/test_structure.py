"""The structure of the package: who may import whom, what stays out of where, and how long things get."""

import ast
import io
import pathlib
import re
import subprocess
import sys
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'omni_jax'
FILES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob('*.py'))
TREES = {path: ast.parse((ROOT / path).read_text()) for path in FILES}
NAMES = {
  '.'.join(path.with_suffix('').parts).removesuffix('.__init__'): path for path in FILES
}

# design.md, section 1. `host` is the numpy side of the modalities.
HOST_FILES = ('host', 'hosts', 'contract', 'sizes', 'files', 'augment', 'tokenizer')
HOST = {'errors', 'retry', 'types', 'host'}
DEVICE = {'errors', 'types', 'sharding', 'nn', 'host', 'modalities'}
MODEL = DEVICE | {'retry', 'config', 'model'}
MAY_IMPORT = {
  'errors': set(),
  'retry': set(),
  'types': set(),
  'chips': set(),
  'run_log': set(),
  'host': {'errors', 'types'},
  'config': {'errors', 'types', 'host'},
  'sequence': HOST,
  'data': HOST | {'config', 'sequence'},
  'sharding': {'errors'},
  'nn': {'sharding'},
  'modalities': DEVICE - {'modalities'},
  'model': DEVICE | {'config'},
  'objective': DEVICE | {'model'},
  'checkpoint': MODEL | {'run_log'},
  'convert': HOST | {'config', 'sequence', 'data', 'model', 'checkpoint'},
  'generate': MODEL | {'sequence', 'checkpoint'},
  'evaluate': MODEL | {'sequence', 'data', 'generate', 'checkpoint', 'omni_jax'},
  'train': MODEL
  | {'chips', 'run_log', 'objective', 'data', 'sequence', 'checkpoint', 'evaluate'},
  'omni_jax': {'generate'},
  'inspect_data': MODEL | {'data', 'sequence', 'evaluate', 'train'},
  'compile': MODEL | {'chips', 'sequence', 'train', 'generate', 'checkpoint'},
  'bench': MODEL | {'data', 'sequence', 'checkpoint', 'train'},
}
# What the command of a room may import beside; no other room imports a command.
COMMAND_MAY_IMPORT = {'generate': {'data'}}  # a prompt is read as a line of data is
WITHOUT_JAX = HOST | {'config', 'sequence', 'data', 'convert'}
# The files of these rooms that are loaded only where jax is.
WITH_JAX = {
  pathlib.Path('omni_jax/data/loader.py'),
  pathlib.Path('omni_jax/convert/codes.py'),
}
BEAM = {
  pathlib.Path('omni_jax/convert/beam.py'),
  pathlib.Path('omni_jax/convert/beam_files.py'),
}
CONFIG = pathlib.Path('omni_jax/config.py')  # runs config files, reads given flags
AXES = {'data', 'fsdp', 'expert', 'tensor', 'context'}
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
MAX_LINES, MAX_FUNCTION, MAX_ARGUMENTS = 450, 80, 8

every_file = pytest.mark.parametrize('path', FILES, ids=str)


def room(path: pathlib.Path) -> str:
  parts = path.with_suffix('').parts
  if parts[-1] in HOST_FILES and parts[1] == 'modalities':
    return 'host'
  return parts[1] if parts[1:] != ('__init__',) else 'omni_jax'


def imports(tree: ast.AST) -> set[str]:
  """Dotted names of everything that is imported, at the top or inside a function."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'line {node.lineno}: relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def modules_imported(tree: ast.AST) -> set[pathlib.Path]:
  """Files of the package among the imports: `a.b.C` is in a/b.py, `a.b` is a/b.py or a/b/__init__.py."""
  ours = {name for name in imports(tree) if name.split('.')[0] == 'omni_jax'}
  return {NAMES.get(name) or NAMES[name.rpartition('.')[0]] for name in ours}


def top_level(tree: ast.Module) -> ast.Module:
  """The imports that happen when the file is loaded."""
  return ast.Module(
    [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []
  )


def calls(tree: ast.AST) -> list[ast.Call]:
  return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def strings(tree: ast.AST) -> set[str]:
  return {
    node.value
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
  }


@every_file
def test_imports_point_one_way(path):
  ours, modules = room(path), modules_imported(TREES[path])
  allowed = {ours} | MAY_IMPORT[ours]
  if path.name == '__main__.py':
    allowed |= COMMAND_MAY_IMPORT.get(ours, set())
  theirs = {room(other) for other in modules}
  assert theirs <= allowed, f'{path} imports {theirs - allowed}'
  commands = {other for other in modules if other.name == '__main__.py'}
  assert not commands or path.name == '__main__.py', f'{path} imports {commands}'


def test_rooms_have_no_cycle():
  below = {name: set(rooms) - {name} for name, rooms in MAY_IMPORT.items()}
  while free := [name for name, rooms in below.items() if not rooms & below.keys()]:
    for name in free:
      del below[name]
  assert not below


def test_files_have_no_cycle():
  needs = {
    path: modules_imported(top_level(tree)) - {path} for path, tree in TREES.items()
  }
  while free := [path for path, wanted in needs.items() if not wanted & needs.keys()]:
    for path in free:
      del needs[path]
  assert not needs


@every_file
def test_host_side_has_no_jax(path):
  tree = TREES[path]
  if path.name == '__main__.py':
    tree = top_level(tree)  # a command answers a mistake before jax is loaded
  elif room(path) not in WITHOUT_JAX or path in WITH_JAX:
    return
  assert not {name.split('.')[0] for name in imports(tree)} & {
    'jax',
    'flax',
    'optax',
    'grain',
    'orbax',
  }


@every_file
def test_orbax_grain_beam_and_tensorflow_are_where_they_belong(path):
  top = {name.split('.')[0] for name in imports(TREES[path])}
  assert (
    'orbax' not in top
    or room(path) == 'checkpoint'
    or path == pathlib.Path('omni_jax/bench/checkpoint.py')  # compares with it
  )
  assert 'grain' not in top or path.name == 'loader.py'
  assert not top & {'tensorflow', 'tensorflow_datasets'} or path == pathlib.Path(
    'omni_jax/data/sources/tfds.py'
  )
  assert not top & {'seqio', 'importlib'} or path == pathlib.Path(
    'omni_jax/convert/formats/seqio.py'
  )
  assert 'runpy' not in top or path == CONFIG
  assert 'apache_beam' not in top or path in BEAM
  assert 'torch' not in top or path == pathlib.Path('omni_jax/bench/peers.py')


@every_file
def test_only_sharding_names_mesh_axes(path):
  if room(path) == 'sharding':
    return
  tree = TREES[path]
  assert not strings(tree) & (
    AXES - {'data', 'expert'}
  )  # `data` is a word of its own, `expert` a logical axis
  assert not any(name.endswith('.PartitionSpec') for name in imports(tree))
  for call in calls(tree):
    name = (
      call.func.attr
      if isinstance(call.func, ast.Attribute)
      else getattr(call.func, 'id', '')
    )
    assert name not in PLACING or not strings(call) & AXES, (
      f'line {call.lineno}: {name} with a mesh axis by name'
    )
  for node in ast.walk(tree):
    assert not (
      isinstance(node, ast.Subscript)
      and ast.unparse(node.value).endswith('mesh.shape')
      and strings(node.slice) & AXES
    ), f'line {node.lineno}: {ast.unparse(node)}'


@every_file
def test_only_commands_read_flags(path):
  """`config.read_config` reads those that a command gives it, and defines none."""
  text = (ROOT / path).read_text()
  reads = imports(TREES[path]) & {
    'argparse',
    'absl.flags',
    'absl.app',
    'ml_collections.config_flags',
  }
  if path == CONFIG:
    names = {ast.unparse(call.func) for call in calls(TREES[path])}
    assert reads == {'absl.flags'} and not any('DEFINE' in name for name in names)
    uses = {
      node.attr
      for node in ast.walk(TREES[path])
      if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'flags'
    }
    assert uses <= {'FlagValues', 'Error'}, 'not those of all commands'
    return
  assert not (reads or 'sys.argv' in text) or "if __name__ == '__main__':" in text


@every_file
def test_sizes(path):
  lines = (ROOT / path).read_text().splitlines()
  assert len(lines) <= MAX_LINES
  assert path.stem not in ('utils', 'util', 'common', 'helpers', 'misc')
  for node in ast.walk(TREES[path]):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      a = node.args
      arguments = [
        x.arg
        for x in a.posonlyargs + a.args + a.kwonlyargs
        if x.arg not in ('self', 'cls')
      ]
      assert node.end_lineno - node.lineno + 1 <= MAX_FUNCTION, (
        f'{node.name} is too long'
      )
      assert len(arguments) <= MAX_ARGUMENTS, (
        f'{node.name} has {len(arguments)} arguments'
      )


# Words that name a medium, and rooms that are about media: there they belong.
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
MEDIUM_LINES, MEDIUM_FILES = 150, 14
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
  source, numbers = text.splitlines(), set()
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type not in NO_CODE:
      numbers.add(token.start[0])
  code = [
    source[n - 1].split('#')[0] for n in sorted(numbers - docstring_lines(TREES[path]))
  ]
  return [line.strip() for line in code if MEDIUM.search(line)]


def test_few_lines_outside_of_the_media_name_one():
  """A file with one or two such lines does not count."""
  found = {}
  for path in FILES:
    lines = lines_with_a_medium(path)
    if len(lines) > 2 and not ABOUT_MEDIA & set(path.with_suffix('').parts):
      found[path] = lines
  worst = sorted(found, key=lambda path: len(found[path]), reverse=True)
  for path in worst[:8]:
    print(len(found[path]), path, *found[path], sep='\n  ')
  assert sum(map(len, found.values())) <= MEDIUM_LINES
  assert len(found) <= MEDIUM_FILES


@every_file
def test_every_file_says_what_it_is(path):
  if (ROOT / path).read_text():
    assert ast.get_docstring(TREES[path]), (
      'a module docstring, one line that would serve in the README'
    )


def test_the_package_loads_without_tensorflow_and_at_once():
  """A finder in front of all others notes whether somebody asks for TensorFlow, be it installed or not."""
  without_jax = [
    name
    for name, path in NAMES.items()
    if room(path) in WITHOUT_JAX and path not in WITH_JAX
  ]
  code = f"""
import sys, time
asked = []
class Watch:
  def find_spec(self, name, path=None, target=None):
    if name == 'tensorflow':
      asked.append(name)
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
assert not asked, asked
"""
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert not done.returncode, done.stderr
