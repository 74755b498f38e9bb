"""Adds a medium by rows of the two tables alone: clouds of points in the plane.

It is read as codes of its own autoencoder (the second one of the model) and written as
a block. Nothing outside this file knows it: the code that serves images and sounds
packs, trains, generates, inspects and compiles it.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest
from samples import tiny_run

from omni_jax import inspect_data, sharding
from omni_jax.checkpoint.init_values import init_frozen
from omni_jax.checkpoint.placement import generation_mesh
from omni_jax.compile.program import build_program, compile_program, program_names
from omni_jax.data.crops import CropLoader
from omni_jax.data.example_maker import ExampleMaker, prepare
from omni_jax.data.loader import Loader
from omni_jax.errors import UserError
from omni_jax.generate.api import TrainedModel
from omni_jax.generate.grammar import reply_kinds
from omni_jax.modalities.contract import Host, MediaFile, Part, Writing
from omni_jax.modalities.device import Autoencoder, Device, TrainOutput
from omni_jax.modalities.devices import DEVICES, Tables
from omni_jax.modalities.head_loss import UnitLoss
from omni_jax.modalities.hosts import HOSTS
from omni_jax.model import abstract_autoencoder, ModelConfig
from omni_jax.nn.layers import Embedding, gather_rows, Linear
from omni_jax.objective import Autoencoding
from omni_jax.sequence.interleave import interleave, parse
from omni_jax.train import state as states
from omni_jax.train.plan import omni_program, Plan
from omni_jax.train.step import make_step, Update
from omni_jax.types import ItemLayout, Layout, NONE, StreamSpec

MOST = 6  # largest number of points of a cloud
DRAWN = 4  # number of points of the clouds that examples draw
CELLS = 16  # entries of the autoencoder


@dataclasses.dataclass(frozen=True)
class PointsConfig:
  """Sizes of clouds.

  Attributes:
    most: largest number of points.
  """

  most: int = MOST


@dataclasses.dataclass(frozen=True)
class PointsPart(Part):
  """A cloud that a reply holds; points is float32 (n, 2) in [0, 1]."""

  points: np.ndarray
  type: str = 'points'


class PointsHost(Host):
  """Payloads are float32 (n, 2) in [0, 1]; a piece is one point, as two bytes."""

  config: PointsConfig
  name = 'points'
  key = 'points'

  def streams(self):
    seen = StreamSpec(
      'points.seen',
      'points',
      written=False,
      queries=False,
      shape=(2,),
      dtype='uint8',
      longest=self.config.most,
      block=2 * self.config.most,
    )
    drawn = seen._replace(name='points.drawn', written=True, queries=True)
    return (seen, drawn)

  def form(self, span):
    if not 0 < len(span.payload) <= self.config.most:
      raise ValueError(f'{len(span.payload)} points, at most {self.config.most}')
    return len(span.payload)

  def layout(self, form, written):
    n = form
    special = self.tokenizer.special
    place = np.zeros((n, 3), np.int32)
    place[:, 2] = np.arange(n)
    at = np.arange(2, 2 + n)
    item = ItemLayout('points.seen', (1, 1, n), place, at)
    if written:
      item = ItemLayout(
        'points.drawn', (1, 1, n), place, at + n, query_M=at, write_M=at
      )
    layout = Layout.empty(3 + n * (1 + written), 2.0 + n, self.text, (item,))
    layout.token_n[0] = special('bop')
    layout.token_n[1] = special(f'size:{n}')
    layout.token_n[-1] = special('eop')
    layout.modality_n[2:-1] = self.number
    layout.offset_n3[:2] = np.arange(2, dtype=np.float32)[:, None]
    layout.offset_n3[2:-1] = 2 + np.tile(place, (1 + written, 1))
    layout.offset_n3[-1] = layout.end
    if written:
      layout.label_n[:2] = layout.token_n[:2]
    return layout

  def pieces(self, span):
    return (np.rint(span.payload * 255).astype(np.uint8),)

  def join_pieces(self, pieces, form):
    return pieces.astype(np.float32) / 255

  def crop(self, payload, pieces, rng):
    n = min(pieces, len(payload))
    value = np.zeros((pieces, 2), np.float32)
    value[:n] = payload[:n]
    mask = np.zeros(pieces, np.float32)
    mask[:n] = 1
    return value, mask

  def writing(self):
    special = self.tokenizer.special
    sizes = tuple(special(f'size:{n}') for n in range(1, self.config.most + 1))
    return Writing(
      opening=((special('bop'),), sizes),
      closing=special('eop'),
      piece=None,
      longest=self.config.most,
    )

  def part(self, payload):
    return PointsPart(payload)

  def show(self, payload):
    dots = ''.join(f'<circle cx="{x}" cy="{y}" r=".02"/>' for x, y in payload)
    text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1">{dots}</svg>'
    return MediaFile('svg', text.encode())


class PointsEmbed(nnx.Module):
  def __init__(self, width, *, rngs):
    self.cell = Embedding(CELLS, width, rngs=rngs, std=1.0)
    self.point = Linear(2, width, (None, 'embed'), rngs=rngs)
    self.query = Embedding(MOST, width, rngs=rngs, std=1.0)

  def read(self, stream, dtype):
    return self.cell(stream.value_BM[..., 0], dtype)

  def written(self, value, place, dtype):
    return self.point(value.astype(dtype) / 255) + self.query(place[..., 2], dtype)

  def queries(self, place, dtype):
    return self.query(place[..., 2], dtype)


class PointsHead(nnx.Module):
  def __init__(self, width, *, rngs):
    self.out = Linear(width, 2, ('embed', None), rngs=rngs, bias=True)

  def losses(self, hidden_BLD, stream, key):
    valid_BM = stream.write_at_BM >= 0
    point_BM2 = self.out(gather_rows(hidden_BLD, stream.write_at_BM))
    error_BM = jnp.square(point_BM2 - stream.value_BM / 255.0).sum(axis=-1)
    weight_BM = valid_BM.astype(jnp.float32)
    return UnitLoss(error_BM * weight_BM, weight_BM, stream.write_at_BM)

  def sample(self, state_UMD, place_UM3, valid_UM, key_U, *, guidance_U, steps):
    return jnp.rint(jnp.clip(self.out(state_UMD), 0, 1) * 255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class CellsConfig:
  cells: int = CELLS


class Cells(nnx.Module):
  """Cells of the plane; each has a centre that moves to the points in it."""

  def __init__(self, cells, *, rngs):
    init = nnx.initializers.uniform(1.0)
    self.centres = sharding.param(
      rngs, (cells, 2), (None, None), init, sharding.Role.TABLE
    )

  def distances(self, value):
    return jnp.square(value[..., None, :] - self.centres[...]).sum(axis=-1)


def cells_loss(cells, buffers, crops, key):
  value, mask = crops
  loss = (cells.distances(value).min(axis=-1) * mask).sum() / mask.sum()
  return loss, TrainOutput({'distance': loss}, mask.sum())


def count_points(config, buffers, count, key):
  return {'points': buffers['points'] + count}


def nearest_cells(cells, buffers, value, item):
  nearest = jnp.argmin(cells.distances(value / 255.0), axis=-1)
  return nearest[..., None].astype(jnp.int32)


CELLS_ROW = Autoencoder(
  name='cells',
  config=CellsConfig,
  make=lambda sizes, config, rngs: Cells(config.cells, rngs=rngs),
  init_buffers=lambda config: {'points': jnp.zeros(())},
  loss=cells_loss,
  update_buffers=count_points,
  encode=nearest_cells,
  decode=lambda cells, buffers, code: cells.centres[...][code[..., 0]],
  identity=lambda sizes, config: '',
  read_buffers=lambda buffers: {},
  codes=lambda sizes, config: ((1,), config.cells),
)
POINTS = Device(
  embed=lambda parts, rngs: PointsEmbed(parts.width, rngs=rngs),
  head=lambda parts, rngs: PointsHead(parts.width, rngs=rngs),
  autoencoder=CELLS_ROW,
  coded=lambda parts: ('seen',),
)
TABLES = Tables(
  {**HOSTS, 'points': (PointsConfig, PointsHost)}, {**DEVICES, 'points': POINTS}
)


def run_config() -> ConfigDict:
  """Returns the tiny run with the medium, which adds only keys of its own."""
  c = tiny_run()
  c.mesh.data = 1
  c.stages = ('codec', 'cells', 'omni')
  c.model.points = ConfigDict(dict(most=MOST))
  c.model.cells = ConfigDict(dict(cells=CELLS))
  c.model.tokenizer.marks = ('bop', 'eop')
  c.model.tokenizer.max_grid = MOST
  c.cells = c.codec.copy_and_resolve_references()
  c.cells.pieces = MOST
  c.omni.losses.points = 1.0
  c.omni.optim.lr = 1e-2
  c.omni.steps = 200
  c.data.budget.streams.points = ConfigDict(dict(seen=(24, 4), drawn=(24, 4)))
  return c


def cloud(rng: np.random.Generator, word: str) -> np.ndarray:
  """Returns three to six random points near the left or the right edge."""
  n = int(rng.integers(3, MOST + 1))
  points = rng.random((n, 2)) * 0.2
  points[:, 0] += 0.8 * (word == 'right')
  return points.astype(np.float32)


def message(role: str, part: dict[str, Any]) -> dict[str, Any]:
  return {'role': role, 'content': [part]}


def example(k: int) -> dict[str, Any]:
  """Returns an example: even ones name a cloud, odd ones draw four fixed points."""
  rng = np.random.default_rng(k)
  word = ('left', 'right')[k // 2 % 2]
  name = {'type': 'text', 'text': word}
  points = cloud(rng, word)
  if k % 2 == 0:
    question = message('user', {'type': 'points', 'points': points})
    answer = message('assistant', name)
    answer['task'] = 'write'
  else:
    points = np.resize(points, (DRAWN, 2))
    points[:, 0] = 0.9 if word == 'right' else 0.1
    points[:, 1] = 0.5
    question = message('user', name)
    answer = message('assistant', {'type': 'points', 'points': points})
  return {'id': f'cloud/{k}', 'messages': [question, answer]}


def clouds(examples: list[dict[str, Any]]) -> list[np.ndarray]:
  """Returns all clouds of the examples."""
  points = []
  for record in examples:
    for turn in record['messages']:
      points.extend(part['points'] for part in turn['content'] if 'points' in part)
  return points


EXAMPLES = [example(k) for k in range(64)]


@pytest.fixture(scope='module')
def plan() -> Plan:
  return Plan(run_config(), tables=TABLES)


@pytest.fixture(scope='module')
def losses_and_model(plan):
  """Returns the losses of both stages and the trained model.

  The programs are those of every run.
  """
  config = plan.model_config
  _, row = config.tables.autoencoders()['cells']
  model = abstract_autoencoder(config, 'cells')
  objective = Autoencoding(row, config.autoencoders['cells'])
  update = Update(refresh=objective.refresh)
  tx = optax.adam(0.03)
  step = jax.jit(make_step(objective, model, tx, update))
  state = states.init_autoencoder_state(config, 'cells', tx, seed=0)
  host = plan.hosts['points']
  crops = CropLoader(clouds(EXAMPLES), host, batch=16, pieces=MOST, seed=0)
  losses = {'cells': [], 'points': [], 'text': []}
  for _ in range(60):
    state, metrics = step(state, next(crops))
    losses['cells'].append(float(metrics['cells/distance']))
  frozen = init_frozen(config, seed=0)
  frozen['cells'] = {'params': state.params, 'buffers': state.buffers}

  loader = Loader(ExampleMaker(EXAMPLES, plan.hosts, 0), plan.budget, prefetch=0)
  with jax.set_mesh(plan.mesh):
    program = omni_program(plan, frozen)
    state = program.init(frozen)
    for _ in range(200):
      batch = sharding.place(next(loader), plan.mesh)
      state, metrics = program.step(state, batch)
      for name in ('points', 'text'):
        losses[name].append(float(metrics[f'loss/{name}']))
  model = TrainedModel(plan.config, 200, state.params, state.buffers, tables=TABLES)
  return losses, model


def test_the_tables_give_points_a_number_streams_and_a_kind_of_reply(plan):
  assert plan.hosts.numbers == {'text': 1, 'image': 2, 'audio': 3, 'points': 4}
  names = [spec.name for spec in plan.hosts.streams]
  assert names[-2:] == ['points.seen', 'points.drawn']
  assert reply_kinds(plan.hosts) == ('text', 'image', 'audio', 'points', 'any')
  assert plan.model_config.decoder.modalities == 5
  assert plan.model_config.coded_streams()['points.seen'] == 'cells'


def test_points_are_packed_with_all_other_media(plan):
  for example in EXAMPLES[:4]:
    parsed = parse(interleave(example, plan.hosts), plan.hosts)
    np.testing.assert_equal(parsed['messages'], example['messages'])
  loader = Loader(ExampleMaker(EXAMPLES, plan.hosts, 0), plan.budget, prefetch=0)
  batch = next(loader)
  assert set(batch.streams) == {spec.name for spec in plan.hosts.streams}
  drawn = batch.streams['points.drawn']
  rows, pieces = np.nonzero(drawn.item_BM)
  assert len(rows) > 8
  for row, piece in zip(rows, pieces, strict=True):
    query = drawn.write_at_BM[row, piece]
    assert drawn.query_at_BL[row, query] == piece
    # The clean points follow the queries.
    assert drawn.at_BL[row, query + DRAWN] == piece
  # No item crosses the border of a block.
  for item_M in drawn.item_BM:
    for item in range(1, item_M.max() + 1):
      blocks = np.flatnonzero(item_M == item) // (2 * MOST)
      assert len(set(blocks)) == 1


def test_too_many_points_are_refused_by_name(plan):
  many = {'type': 'points', 'points': np.zeros((MOST + 1, 2), np.float32)}
  with pytest.raises(ValueError, match=f'{MOST + 1} points'):
    prepare({'content': [many]}, plan.hosts)
  with pytest.raises(UserError, match='points'):
    text_only = ModelConfig.from_config(tiny_run().model).hosts()
    prepare({'content': [many]}, text_only)


def test_autoencoder_and_head_of_points_learn(losses_and_model):
  losses, model = losses_and_model
  assert np.mean(losses['cells'][-5:]) < 0.5 * losses['cells'][0]
  assert float(model.frozen['cells']['buffers']['points']) > 100
  assert np.mean(losses['points'][-10:]) < 0.2 * np.mean(losses['points'][:10])
  assert set(model.frozen) == {'codec', 'cells'}


def test_points_are_read_and_written_in_replies(losses_and_model):
  _, model = losses_and_model
  for word, edge in (('left', 0.1), ('right', 0.9)):
    (part,) = model.generate(word, want='points', temperature=0)
    assert part.type == 'points'
    assert part.points.shape == (DRAWN, 2)
    assert (abs(part.points[:, 0] - edge) < 0.3).all(), part.points
    question = {'type': 'points', 'points': cloud(np.random.default_rng(99), word)}
    (name,) = model.generate([question], want='text', temperature=0)
    assert name.text == word
  original = clouds(EXAMPLES[:1])[0]
  codes = model.encode_payloads('cells', [original])
  (decoded,) = model.decode_items('cells', codes)
  assert np.abs(decoded - original).max() < 0.3


def test_points_are_shown_by_inspect_data(plan):
  loader = Loader(ExampleMaker(EXAMPLES, plan.hosts, 0), plan.budget, prefetch=0)
  batch = next(loader)
  page = inspect_data.render(batch, plan.hosts, rows=2, title='points')
  assert 'points.seen' in page
  assert 'data:image/svg+xml' in page
  losses = inspect_data.loss_masks(batch, 0, plan.hosts)
  written_M = batch.streams['points.drawn'].write_at_BM[0] != NONE
  assert losses['points'].sum() == written_M.sum()


def test_the_programs_of_points_compile(plan):
  config = plan.model_config
  assert program_names(config) == ('train', 'prefill', 'decode', 'draw', 'points')
  mesh = generation_mesh(config, {})
  compiled = compile_program(build_program('points', plan, mesh))
  assert not compiled.refusal
  assert compiled.text
