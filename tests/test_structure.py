"""The structure of the package: who may import whom, what stays out of where, and how long things get."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'omni_jax'
FILES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob('*.py'))
TREES = {path: ast.parse((ROOT / path).read_text()) for path in FILES}
NAMES = {
  '.'.join(path.with_suffix('').parts).removesuffix('.__init__'): path for path in FILES
}

# design.md §1. `host` is the numpy side of the modalities: their host.py, files.py and the tokenizer.
HOST = {'errors', 'retry', 'types', 'host'}
DEVICE = {'errors', 'retry', 'types', 'sharding', 'nn', 'host', 'modalities'}
MODEL = DEVICE | {'config', 'model'}
MAY_IMPORT = {
  'errors': set(),
  'retry': set(),
  'types': set(),
  'host': HOST,
  'config': {'errors', 'types'},
  'sequence': HOST,
  'data': HOST | {'config', 'sequence'},
  'convert': HOST | {'config', 'sequence', 'data', 'checkpoint'},
  'chips': set(),
  'sharding': {'errors'},
  'run_log': set(),
  'nn': {'sharding'},
  'modalities': DEVICE,
  'model': DEVICE | {'config'},
  'checkpoint': MODEL | {'run_log'},
  'generate': MODEL | {'sequence', 'checkpoint'},
  'evaluate': MODEL | {'sequence', 'data', 'generate', 'checkpoint', 'omni_jax'},
  'train': MODEL
  | {'chips', 'run_log', 'data', 'sequence', 'checkpoint', 'evaluate', 'convert'},
  'omni_jax': {'generate'},
  'inspect_data': MODEL | {'data', 'sequence', 'evaluate', 'train'},
  'compile': MODEL | {'chips', 'data', 'sequence', 'train', 'generate', 'checkpoint'},
  'bench': MODEL | {'data', 'sequence', 'checkpoint', 'train'},
}
BEAM = {
  pathlib.Path('omni_jax/convert/beam.py'),
  pathlib.Path('omni_jax/convert/beam_files.py'),
}
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
  if parts[-1] in ('host', 'tokenizer') and parts[1] == 'modalities':
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
  theirs = {room(other) for other in modules_imported(TREES[path])} - {room(path)}
  assert theirs <= MAY_IMPORT[room(path)], (
    f'{path} imports {theirs - MAY_IMPORT[room(path)]}'
  )


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
  elif (
    room(path) not in ('errors', 'retry', 'types', 'config', 'host', 'data', 'convert')
    or path.name == 'loader.py'
  ):
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
  text = (ROOT / path).read_text()
  reads = (
    imports(TREES[path])
    & {'argparse', 'absl.flags', 'absl.app', 'ml_collections.config_flags'}
    or 'sys.argv' in text
  )
  assert not reads or "if __name__ == '__main__':" in text


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


@every_file
def test_every_file_says_what_it_is(path):
  if (ROOT / path).read_text():
    assert ast.get_docstring(TREES[path]), (
      'a module docstring, one line that would serve in the README'
    )


def test_the_package_loads_without_tensorflow_and_at_once():
  """A finder in front of all others notes whether somebody asks for TensorFlow, be it installed or not."""
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
import {', '.join(sorted(name for name, path in NAMES.items() if room(path) in ('config', 'convert', 'data', 'host') and path.name != 'loader.py'))}
loaded = [m for m in ('jax', 'flax', 'grain') if m in sys.modules]
assert not loaded, loaded
import omni_jax.train.stages, omni_jax.evaluate.run
assert not asked, asked
"""
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert not done.returncode, done.stderr
