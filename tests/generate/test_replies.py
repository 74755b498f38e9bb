"""Replies through the cache equal one pass, and those of a batch equal each alone.

Seeds and guidance have the intended effect, and each kind of reply holds what it may.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples

from omni_jax.errors import UserError
from omni_jax.generate import api, prefill
from omni_jax.generate.api import TrainedModel
from omni_jax.generate.grammar import build_grammar, START
from omni_jax.generate.prefill import DecodeState, extend_rows
from omni_jax.generate.reply import WrittenItem
from omni_jax.modalities.audio.device import codebooks_of, encode
from omni_jax.modalities.audio.quantizer import dequantize
from omni_jax.model import abstract, abstract_autoencoder, encode_streams, merge
from omni_jax.nn.layers import gather_rows
from omni_jax.sequence.interleave import interleave, prompt_spans
from omni_jax.sequence.pack import LaidOut, lay_out, pack_rows
from omni_jax.types import Batch, NONE, RowBudget, Span

GREEDY = dict(temperature=0.0, speech_temperature=0.0)


def prompt(content, task='reply', **control):
  answer = {'role': 'assistant', 'task': task, 'content': [], **control}
  return {'messages': [{'role': 'user', 'content': content}, answer]}


def picture(seed=0):
  return samples.picture(np.random.default_rng(seed))


def sound(seed=0):
  return samples.sound(np.random.default_rng(seed))


def as_jax(batch):
  return jax.tree.map(jnp.asarray, batch)


def test_reading_through_the_cache_equals_one_pass(trained):
  """A row with all media is read whole, and piece by piece through the cache."""
  hosts = trained.hosts
  model = merge(abstract(trained.model_config), trained.params)
  question = [picture(), sound()]
  answer = [samples.text('ab'), picture(1), sound(1)]
  example = samples.chat('x', question, answer, task='reply')
  laid = lay_out(interleave(example, hosts), hosts)
  room = {'image.seen': (16, 1), 'image.drawn': (16, 1)}
  room |= {'audio.heard': (8, 1), 'audio.spoken': (8, 1)}
  batch = pack_rows([laid], RowBudget(1, laid.length, room), hosts)
  batch = encode_streams(trained.model_config, trained.frozen, as_jax(batch))
  bias = trained._buffers['router_bias']
  with jax.set_mesh(trained.mesh):
    one_pass = model(batch, bias, trained.mesh).hidden_BLD
    x_BLD = model.embed(batch)
    cache = model.decoder.init_cache(1, laid.length + 3)
    unused = [None] * (len(DecodeState._fields) - 2)
    state = DecodeState(cache, jnp.zeros(1, jnp.int32), *unused)
    pieces = []
    start = 0
    for size in [20, 1, 1, 7, 1] + [1] * 8 + [laid.length]:
      cut = slice(start, min(start + size, laid.length))
      hidden, state = extend_rows(
        model,
        state,
        x_BLD[:, cut],
        jnp.asarray(batch.modality_BL[:, cut]),
        jnp.asarray(batch.position_BL3[:, cut]),
        bias,
        trained.mesh,
      )
      pieces.append(hidden)
      start = cut.stop
  np.testing.assert_allclose(
    jnp.concatenate(pieces, axis=1), one_pass, rtol=2e-4, atol=2e-5
  )


def span_of(item: str | WrittenItem, model: TrainedModel) -> Span:
  """Returns an item of a reply as a span of an example; sound becomes silence."""
  if isinstance(item, str):
    return Span('text', True, tokens=model.tokenizer.encode(item))
  host = model.hosts[item.medium]
  if item.medium == 'image':
    return Span('image', True, payload=host.join_pieces(item.pieces, item.form))
  length = len(item.pieces) * host.config.frame
  return Span('audio', True, payload=np.zeros(length, np.float32))


def ascii_rules(trained: TrainedModel, want: str):
  """Returns the grammar of a want, restricted to ASCII.

  An untrained model writes broken UTF-8, which cannot be turned back into its ids.
  """
  rules = jax.tree.map(jnp.asarray, build_grammar(trained.hosts, want))
  first = trained.tokenizer.first_byte + 128
  return rules._replace(allowed_CV=rules.allowed_CV.at[:, first:].set(False))


def prompt_with_everything(hosts) -> list[Span]:
  """Returns a prompt with all media, and with an image that an earlier turn drew."""
  chat = prompt([picture(), sound(), samples.text('q')])
  user = chat['messages'][0]
  earlier = {'role': 'assistant', 'task': 'draw', 'content': [picture(1)]}
  return prompt_spans({'messages': [user, earlier, *chat['messages']]}, hosts)


def with_codes(batch: Batch, code_BMJ: np.ndarray) -> Batch:
  """Returns the batch with these codes as what was spoken."""
  spoken = batch.streams['audio.spoken']._replace(value_BM=jnp.asarray(code_BMJ))
  return batch._replace(streams=batch.streams | {'audio.spoken': spoken})


def check_ids(
  logits_LV: np.ndarray, laid: LaidOut, begin: int, rules, tokenizer
) -> None:
  """Checks that each id of the reply is the best one that the grammar allows.

  Args:
    logits_LV: logits of one pass over the prompt and the reply.
    begin: first position of the reply.
  """
  mode = START
  tables = jax.tree.map(np.asarray, rules)
  for at in range(begin, laid.length):
    label = laid.layout.label_n[at]
    if not label:
      mode = int(tables.after) if tables.block_C[mode] else mode
      continue
    allowed = tables.allowed_CV[mode]
    assert allowed[label]
    # An item that has reached its longest size is closed, whatever the logits say.
    may_be_forced = label == tokenizer.special('eoa')
    if not (may_be_forced and allowed[tokenizer.special('frame')]):
      logits_V = logits_LV[at - 1]
      assert logits_V[label] >= logits_V[allowed].max() - 1e-4
    mode = int(tables.next_CV[mode, label])


@pytest.mark.parametrize(
  'want, fixture',
  [
    ('text', 'trained'),
    ('image', 'trained'),
    ('audio', 'trained'),
    ('any', 'trained'),
    ('image', 'many_sizes'),
    ('any', 'many_sizes'),
  ],
)
def test_greedy_reply_is_what_one_pass_over_it_predicts(request, want, fixture):
  """In one pass over prompt and reply, every id and code of the reply is the best."""
  trained = request.getfixturevalue(fixture)
  hosts = trained.hosts
  rules = ascii_rules(trained, want)
  settings = trained.config.generate.to_dict()
  settings.update(GREEDY, max_new=12)
  spans = prompt_with_everything(hosts)
  laid = lay_out(spans, hosts)
  begin = laid.length
  keys = jax.random.split(jax.random.key(0), 1)
  with jax.set_mesh(trained.mesh):
    (items,) = trained._write([laid], rules, settings, keys)
  assert items
  codes = []
  for item in items:
    if isinstance(item, WrittenItem) and item.medium == 'audio':
      codes.append(item.pieces)
  frames = sum(len(item_codes) for item_codes in codes)
  laid = lay_out(spans + [span_of(item, trained) for item in items], hosts)
  room = {'image.seen': (2 * 32, 2), 'image.drawn': (5 * 32, 5)}
  room |= {'audio.heard': (8, 2), 'audio.spoken': (64, 64)}
  batch = as_jax(pack_rows([laid], RowBudget(1, laid.length, room), hosts))
  books = trained.model_config.autoencoders['codec'].codebooks
  code_BMJ = np.zeros((1, 64, books), np.int32)
  if codes:
    code_BMJ[0, :frames] = np.concatenate(codes)
  batch = with_codes(batch, code_BMJ)
  write_at_BM = batch.streams['audio.spoken'].write_at_BM
  batch = encode_streams(trained.model_config, trained.frozen, batch)
  model = merge(abstract(trained.model_config), trained.params)
  bias = trained._buffers['router_bias']
  with jax.set_mesh(trained.mesh):
    hidden = model(batch, bias, trained.mesh).hidden_BLD
    logits_LV = np.asarray(model.heads['text'].logits(hidden))[0]
  check_ids(logits_LV, laid, begin, rules, trained.tokenizer)
  if codes:
    written = code_BMJ[0]
    state = gather_rows(hidden, write_at_BM)[0]
    logits = model.heads['audio'].logits(state, jnp.asarray(written))
    best = np.asarray(logits).argmax(axis=-1)
    valid = np.asarray(write_at_BM[0]) != NONE
    assert valid.sum() == frames
    np.testing.assert_array_equal(best[valid], written[valid])


def test_a_reply_does_not_depend_on_its_neighbours(trained):
  first = prompt([picture()], language='en')
  longer = prompt([samples.text('a much longer question, to move things about')])
  others = [longer, prompt([sound()])]
  for want in ('text', 'image', 'audio'):
    (alone,) = trained.generate_batch([first], want, seed=3, max_new=8)
    together = trained.generate_batch([first, *others], want, seed=3, max_new=8)[0]
    assert samples.same_parts(alone, together)


def test_a_cache_that_grows_writes_what_a_large_one_would(trained, monkeypatch):
  """Replies with several pictures do not depend on the room that the cache has first."""
  prompts = [prompt([samples.text(f'{k}')], language='en') for k in range(64)]
  options = dict(temperature=1.0, speech_temperature=1.0, max_new=96)

  def replies() -> list:
    return trained.generate_batch(prompts, 'any', seed=5, **options)

  grown: list[int] = []

  def grow(cache, *, slots):
    grown.append(slots)
    return prefill.grow(cache, slots=slots)

  monkeypatch.setattr(api, 'grow', grow)
  growing = replies()
  pictures = [sum(part.type == 'image' for part in reply) for reply in growing]
  assert grown and max(pictures) > 1
  grown.clear()
  enough = api.reply_slots(trained.model_config, 96, api.max_blocks(96))
  monkeypatch.setattr(api, 'reply_slots', lambda *_: enough)
  monkeypatch.setattr(api, 'grow', lambda cache, *, slots: cache)
  for parts, expected in zip(growing, replies(), strict=True):
    assert samples.same_parts(parts, expected)


def test_the_seed_determines_the_reply(trained):
  def text_of(seed: int) -> str:
    options = dict(temperature=1.0, max_new=12)
    reply = trained.generate('hello', want='text', seed=seed, **options)
    return reply[0].text

  assert text_of(1) == text_of(1)
  assert len({text_of(seed) for seed in range(4)}) > 1


def test_guidance_changes_the_picture(trained):
  def pixels_of(guidance: float) -> np.ndarray:
    reply = trained.generate('four', want='image', seed=0, guidance=guidance)
    return reply[0].pixels

  assert not np.allclose(pixels_of(1.0), pixels_of(4.0), atol=1e-4)


@pytest.mark.parametrize('want', ['text', 'image', 'audio'])
def test_a_reply_holds_what_is_wanted(trained, want):
  content = [sound(), samples.text('?')]
  options = dict(temperature=1.0, max_new=16)
  reply = trained.generate(content, want=want, seed=0, **options)
  assert [part.type for part in reply] == [want]


def test_codec_round_trip_has_whole_frames(trained):
  waves = [sound(0)['wave'], sound(1)['wave'][:700]]
  codes = trained.encode_payloads('codec', waves)
  assert [len(code) for code in codes] == [3, 2]
  decoded = trained.decode_payloads('codec', codes)
  assert [len(wave) for wave in decoded] == [3 * 640, 2 * 640]
  samples_S = np.rint(waves[0] * 32768) / np.float32(32768)
  frames = np.pad(samples_S, (0, 3 * 640 - len(samples_S))).reshape(1, 3, 640)
  values = trained.frozen['codec']
  codec = merge(abstract_autoencoder(trained.model_config, 'codec'), values['params'])
  one_clip = jnp.ones((1, 3), jnp.int32)
  code_of_device = encode(codec, values['buffers'], jnp.asarray(frames), one_clip)
  np.testing.assert_array_equal(codes[0], np.asarray(code_of_device)[0])
  latents = dequantize(code_of_device, codebooks_of(values['buffers']))
  np.testing.assert_allclose(decoded[0], codec.decode(latents)[0], atol=1e-5)


def test_the_loss_of_examples_lies_between_their_losses(trained):
  examples = samples.examples()[:2]
  both = trained.loss(examples)
  first = trained.loss(examples[:1])
  second = trained.loss(examples[1:])
  assert set(first) == {'text'}
  assert set(second) == {'text', 'image'}
  lower, upper = sorted([first['text'], second['text']])
  assert lower < both['text'] < upper
  assert both['image'] == pytest.approx(second['image'], rel=1e-4)


def test_mistakes_are_refused(trained):
  with pytest.raises(UserError, match='smell'):
    trained.generate('x', want='smell')
  with pytest.raises(UserError, match='temprature'):
    trained.generate('x', want='text', temprature=1.0)
  with pytest.raises(UserError, match='context'):
    trained.generate('x' * 500, want='text')
  with pytest.raises(UserError, match='lang'):
    trained.generate('x', want='text', language='tlh')
