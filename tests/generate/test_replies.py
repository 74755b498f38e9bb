"""Replies: cached = one pass, batch = alone, seeds, and what each want may hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples

from omni_jax.errors import UserError
from omni_jax.generate.api import TrainedModel
from omni_jax.generate.grammar import grammar, START
from omni_jax.generate.prefill import append, Rows
from omni_jax.generate.reply import Written
from omni_jax.modalities.audio.device import codebooks_of, encode
from omni_jax.modalities.audio.quantizer import dequantize
from omni_jax.model import abstract, abstract_autoencoder, encode_streams, merge
from omni_jax.nn.layers import gather_rows
from omni_jax.sequence.interleave import interleave, prompt_spans
from omni_jax.sequence.pack import lay_out, pack_rows
from omni_jax.types import NONE, RowBudget, Span

GREEDY = dict(temperature=0.0, speech_temperature=0.0)


def prompt(content, task='reply', **control):
  answer = {'role': 'assistant', 'task': task, 'content': [], **control}
  return {'messages': [{'role': 'user', 'content': content}, answer]}


def a_picture(seed=0):
  return samples.picture(np.random.default_rng(seed))


def a_sound(seed=0):
  return samples.sound(np.random.default_rng(seed))


def on_device(batch):
  return jax.tree.map(jnp.asarray, batch)


def test_piece_by_piece_equals_one_pass(trained):
  """A row that holds everything, read whole and read through the cache in pieces of every size."""
  model, hosts = merge(abstract(trained.model_config), trained.params), trained.hosts
  example = samples.chat(
    'x',
    [a_picture(), a_sound()],
    [samples.text('ab'), a_picture(1), a_sound(1)],
    task='reply',
  )
  laid = lay_out(interleave(example, hosts), hosts)
  room = {'image.seen': (16, 1), 'image.drawn': (16, 1)}
  room |= {'audio.heard': (8, 1), 'audio.spoken': (8, 1)}
  batch = pack_rows([laid], RowBudget(1, laid.length, room), hosts)
  batch = encode_streams(trained.model_config, trained.frozen, on_device(batch))
  bias = trained._buffers['router_bias']
  with jax.set_mesh(trained._mesh):
    whole = model(batch, bias, trained._mesh).hidden_BLD
    x_BLD = model.embed(batch)
    cache = model.decoder.init_cache(1, laid.length + 3)
    rows = Rows(cache, jnp.zeros(1, jnp.int32), *[None] * (len(Rows._fields) - 2))
    pieces, start = [], 0
    for size in [20, 1, 1, 7, 1] + [1] * 8 + [laid.length]:
      cut = slice(start, min(start + size, laid.length))
      hidden, rows = append(
        model,
        rows,
        x_BLD[:, cut],
        jnp.asarray(batch.modality_BL[:, cut]),
        jnp.asarray(batch.position_BL3[:, cut]),
        bias,
        trained._mesh,
      )
      pieces.append(hidden)
      start = cut.stop
  np.testing.assert_allclose(
    jnp.concatenate(pieces, axis=1), whole, rtol=2e-4, atol=2e-5
  )


def span_of(item: str | Written, model: TrainedModel) -> Span:
  """What was written, as a part of an example; sound is silence of its length."""
  if isinstance(item, str):
    return Span('text', True, tokens=model.tokenizer.encode(item))
  host = model.hosts[item.medium]
  if item.medium == 'image':
    return Span('image', True, payload=host.joined(item.pieces, item.form))
  samples = len(item.pieces) * host.config.frame
  return Span('audio', True, payload=np.zeros(samples, np.float32))


@pytest.mark.parametrize(
  'want, kind',
  [
    ('text', 'trained'),
    ('image', 'trained'),
    ('audio', 'trained'),
    ('any', 'trained'),
    ('image', 'many_sizes'),
    ('any', 'many_sizes'),
  ],
)
def test_greedy_reply_is_what_one_pass_over_it_predicts(request, want, kind):
  """The reply is put behind its prompt and read in one pass: every id and code must be the best one there."""
  trained = request.getfixturevalue(kind)
  hosts, tokenizer = trained.hosts, trained.tokenizer
  rules = jax.tree.map(jnp.asarray, grammar(hosts, want))
  settings = trained.config.generate.to_dict() | GREEDY | dict(max_new=12)
  # An untrained model writes broken UTF-8, which has no way back to its bytes: keep it to ASCII.
  rules = rules._replace(
    allowed_MV=rules.allowed_MV.at[:, tokenizer.first_byte + 128 :].set(False)
  )
  drawn = {
    'role': 'assistant',
    'task': 'draw',
    'content': [a_picture(1)],
  }  # an earlier turn
  chat = prompt([a_picture(), a_sound(), samples.text('q')])
  spans = prompt_spans(
    {'messages': [chat['messages'][0], drawn, *chat['messages']]}, hosts
  )
  laid = lay_out(spans, hosts)
  begin = laid.length
  with jax.set_mesh(trained._mesh):
    (items,) = trained._write(
      [laid], rules, settings, jax.random.split(jax.random.key(0), 1)
    )
  assert items
  codes = [
    item.pieces
    for item in items
    if isinstance(item, Written) and item.medium == 'audio'
  ]
  laid = lay_out(spans + [span_of(item, trained) for item in items], hosts)
  room = {'image.seen': (2 * 32, 2), 'image.drawn': (5 * 32, 5)}
  room |= {'audio.heard': (8, 2), 'audio.spoken': (64, 64)}
  batch = on_device(pack_rows([laid], RowBudget(1, laid.length, room), hosts))
  books = trained.model_config.autoencoders['codec'].codebooks
  code_BMJ = np.zeros((1, 64, books), np.int32)
  code_BMJ[0, : sum(map(len, codes))] = np.concatenate(codes) if codes else 0
  spoken = batch.streams['audio.spoken']._replace(value_BM=jnp.asarray(code_BMJ))
  batch = batch._replace(streams=batch.streams | {'audio.spoken': spoken})
  batch = encode_streams(trained.model_config, trained.frozen, batch)
  model = merge(abstract(trained.model_config), trained.params)
  bias = trained._buffers['router_bias']
  with jax.set_mesh(trained._mesh):
    hidden = model(batch, bias, trained._mesh).hidden_BLD
    logits = np.asarray(model.heads['text'].logits(hidden))[0]
  mode, tables = START, jax.tree.map(np.asarray, rules)
  for at in range(begin, laid.length):
    label = laid.layout.label_n[at]
    if not label:
      mode = int(tables.after) if tables.block_M[mode] else mode
      continue
    allowed = tables.allowed_MV[mode]
    assert allowed[label]
    if not (label == tokenizer.special('eoa') and allowed[tokenizer.special('frame')]):
      assert logits[at - 1][label] >= logits[at - 1][allowed].max() - 1e-4
    mode = int(tables.next_MV[mode, label])
  if codes:
    state, truth = gather_rows(hidden, spoken.write_at_BM)[0], code_BMJ[0]
    best = np.asarray(model.heads['audio'].logits(state, jnp.asarray(truth))).argmax(
      axis=-1
    )
    valid = np.asarray(spoken.write_at_BM[0]) != NONE
    assert valid.sum() == sum(map(len, codes))
    np.testing.assert_array_equal(best[valid], truth[valid])


def test_reply_does_not_depend_on_its_neighbours(trained):
  first = prompt([a_picture()], language='en')
  others = [
    prompt([samples.text('a much longer question, to move things about')]),
    prompt([a_sound()]),
  ]
  for want in ('text', 'image', 'audio'):
    (alone,) = trained.generate_batch([first], want, seed=3, max_new=8)
    together = trained.generate_batch([first, *others], want, seed=3, max_new=8)[0]
    assert samples.same_parts(alone, together)


def test_seed_decides(trained):
  ask = lambda seed: (
    trained.generate('hello', want='text', seed=seed, temperature=1.0, max_new=12)[
      0
    ].text
  )
  assert ask(1) == ask(1)
  assert len({ask(seed) for seed in range(4)}) > 1


def test_guidance_changes_the_picture(trained):
  draw = lambda g: trained.generate('four', want='image', seed=0, guidance=g)[0].pixels
  assert not np.allclose(draw(1.0), draw(4.0), atol=1e-4)


@pytest.mark.parametrize(
  'want, kind', [('text', 'text'), ('image', 'image'), ('audio', 'audio')]
)
def test_want_is_what_comes(trained, want, kind):
  reply = trained.generate(
    [a_sound(), samples.text('?')], want=want, seed=0, temperature=1.0, max_new=16
  )
  assert [part.type for part in reply] == [kind]


def test_codec_round_trip_has_whole_frames(trained):
  waves = [a_sound(0)['wave'], a_sound(1)['wave'][:700]]
  codes = trained.encode_payloads('codec', waves)
  assert [len(code) for code in codes] == [3, 2]
  decoded = trained.decode_payloads('codec', codes)
  assert [len(wave) for wave in decoded] == [3 * 640, 2 * 640]
  samples_S = np.rint(waves[0] * 32768) / np.float32(32768)
  frames = np.pad(samples_S, (0, 3 * 640 - len(samples_S))).reshape(1, 3, 640)
  values = trained.frozen['codec']
  codec = merge(abstract_autoencoder(trained.model_config, 'codec'), values['params'])
  one_clip = jnp.ones((1, 3), jnp.int32)
  direct = encode(codec, values['buffers'], jnp.asarray(frames), one_clip)
  np.testing.assert_array_equal(codes[0], np.asarray(direct)[0])
  latents = dequantize(direct, codebooks_of(values['buffers']))
  np.testing.assert_allclose(decoded[0], codec.decode(latents)[0], atol=1e-5)


def test_loss_is_the_mean_over_examples(trained):
  few = samples.examples()[:2]
  both, one, two = trained.loss(few), trained.loss(few[:1]), trained.loss(few[1:])
  assert set(one) == {'text'} and set(two) == {'text', 'image'}
  assert min(one['text'], two['text']) < both['text'] < max(one['text'], two['text'])
  assert both['image'] == pytest.approx(two['image'], rel=1e-4)


def test_mistakes_are_refused(trained):
  with pytest.raises(UserError, match='smell'):
    trained.generate('x', want='smell')
  with pytest.raises(UserError, match='temprature'):
    trained.generate('x', want='text', temprature=1.0)
  with pytest.raises(UserError, match='context'):
    trained.generate('x' * 500, want='text')
  with pytest.raises(UserError, match='lang'):
    trained.generate('x', want='text', language='tlh')
