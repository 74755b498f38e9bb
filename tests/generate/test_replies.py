"""Replies: cached = one pass, batch = alone, seeds, and what each want may hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samples

from omni_jax.errors import UserError
from omni_jax.generate.grammar import grammar, Mode
from omni_jax.generate.prefill import append, Rows
from omni_jax.model import abstract, codes_of, Encoded, merge
from omni_jax.nn.layers import gather_rows
from omni_jax.sequence.interleave import interleave, prompt_spans
from omni_jax.sequence.pack import lay_out, pack_rows
from omni_jax.types import Modality, NONE, RowBudget, Span

GREEDY = dict(temperature=0.0, speech_temperature=0.0)


def prompt(content, task='reply', **control):
  answer = {'role': 'assistant', 'task': task, 'content': [], **control}
  return {'messages': [{'role': 'user', 'content': content}, answer]}


def on_device(batch):
  return jax.tree.map(jnp.asarray, batch)


def a_picture(seed=0):
  return samples.picture(np.random.default_rng(seed))


def a_sound(seed=0):
  return samples.sound(np.random.default_rng(seed))


def same(left, right) -> bool:
  assert [part.type for part in left] == [part.type for part in right]
  return all(
    a.text == b.text
    and (a.pixels is None or np.allclose(a.pixels, b.pixels, atol=1e-5))
    and (a.wave is None or np.allclose(a.wave, b.wave, atol=1e-5))
    for a, b in zip(left, right, strict=True)
  )


def test_piece_by_piece_equals_one_pass(omni):
  """A row that holds everything, read whole and read through the cache in pieces of every size."""
  model = merge(abstract(omni.omni), omni.params)
  example = samples.chat(
    'x',
    [a_picture(), a_sound()],
    [samples.text('ab'), a_picture(1), a_sound(1)],
    task='reply',
  )
  laid = lay_out(interleave(example, omni.tokenizer), omni.tokenizer, omni.omni.media)
  batch = on_device(
    pack_rows([laid], RowBudget(1, laid.length, 1, 1, 8, 8), omni.omni.media)
  )
  encoded: Encoded = omni._encode(
    omni._buffers['codec']['params'], omni._codebooks, batch
  )
  bias = omni._buffers['router_bias']
  with jax.set_mesh(omni._mesh):
    whole = model(batch, encoded, bias, omni._mesh).hidden_BLD
    x_BLD = model.embed(batch, encoded)
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
        omni._mesh,
      )
      pieces.append(hidden)
      start = cut.stop
  np.testing.assert_allclose(
    jnp.concatenate(pieces, axis=1), whole, rtol=2e-4, atol=2e-5
  )


@pytest.mark.parametrize(
  'want, kind',
  [
    ('text', 'omni'),
    ('image', 'omni'),
    ('audio', 'omni'),
    ('any', 'omni'),
    ('any', 'noise_in_decoder'),
  ],
)
def test_greedy_reply_is_what_one_pass_over_it_predicts(request, want, kind):
  """The reply is put behind its prompt and read in one pass: every id and code must be the best one there."""
  omni = request.getfixturevalue(kind)
  rules = jax.tree.map(jnp.asarray, grammar(omni.tokenizer, want))
  settings = omni.config.generate.to_dict() | GREEDY | dict(max_new=12)
  # An untrained model writes broken UTF-8, which has no way back to its bytes: keep it to ASCII.
  rules = rules._replace(
    allowed_MV=rules.allowed_MV.at[:, omni.tokenizer.first_byte + 128 :].set(False)
  )
  drawn = {
    'role': 'assistant',
    'task': 'draw',
    'content': [a_picture(1)],
  }  # an earlier turn
  chat = prompt([a_picture(), samples.text('q')])
  spans = prompt_spans(
    {'messages': [chat['messages'][0], drawn, *chat['messages']]}, omni.tokenizer
  )
  laid = lay_out(spans, omni.tokenizer, omni.omni.media)
  with jax.set_mesh(omni._mesh):
    (parts,) = omni._write(
      [laid], rules, settings, jax.random.split(jax.random.key(0), 1)
    )
  assert parts
  codes = [
    part.wave for part in parts if part.type == 'audio'
  ]  # before `with_sound` these are codes
  frame = omni.omni.media.audio.frame
  written = {
    'text': lambda p: Span(Modality.TEXT, True, tokens=omni.tokenizer.encode(p.text)),
    'image': lambda p: Span(Modality.IMAGE, True, pixels=p.pixels),
    'audio': lambda p: Span(
      Modality.AUDIO, True, wave=np.zeros(len(p.wave) * frame, np.float32)
    ),
  }
  laid = lay_out(
    spans + [written[part.type](part) for part in parts],
    omni.tokenizer,
    omni.omni.media,
  )
  batch = on_device(
    pack_rows([laid], RowBudget(1, laid.length, 2, 5, 8, 64), omni.omni.media)
  )
  code_BRJ = np.zeros((1, 64, omni.omni.codec.codebooks), np.int32)
  code_BRJ[0, : sum(map(len, codes))] = np.concatenate(codes) if codes else 0
  model, encoded = (
    merge(abstract(omni.omni), omni.params),
    Encoded(jnp.asarray(code_BRJ)),
  )
  with jax.set_mesh(omni._mesh):
    hidden = model(batch, encoded, omni._buffers['router_bias'], omni._mesh).hidden_BLD
    logits = np.asarray(model.heads['text'].logits(hidden))[0]
  begin, mode, after = (
    len(lay_out(spans, omni.tokenizer, omni.omni.media).layout.token_n),
    int(Mode.START),
    rules,
  )
  for at in range(begin, laid.length):
    label = laid.layout.label_n[at]
    if not label:
      mode = int(after.after_draw) if mode == Mode.DRAW else mode
      continue
    allowed = np.asarray(rules.allowed_MV)[mode].copy()
    assert allowed[label]
    if not (
      label == omni.tokenizer.special('eoa')
      and allowed[omni.tokenizer.special('frame')]
    ):
      assert logits[at - 1][label] >= logits[at - 1][allowed].max() - 1e-4
    mode = int(np.asarray(rules.next_MV)[mode, label])
  if codes:
    state, truth = gather_rows(hidden, batch.speak_at_BR)[0], code_BRJ[0]
    best = np.asarray(model.heads['audio'].logits(state, jnp.asarray(truth))).argmax(
      axis=-1
    )
    valid = batch.speak_at_BR[0] != NONE
    assert valid.sum() == sum(map(len, codes))
    np.testing.assert_array_equal(best[valid], truth[valid])


def test_reply_does_not_depend_on_its_neighbours(omni):
  first = prompt([a_picture()], language='en')
  others = [
    prompt([samples.text('a much longer question, to move things about')]),
    prompt([a_sound()]),
  ]
  for want in ('text', 'image', 'audio'):
    (alone,) = omni.generate_batch([first], want, seed=3, max_new=8)
    together = omni.generate_batch([first, *others], want, seed=3, max_new=8)[0]
    assert same(alone, together)


def test_seed_decides(omni):
  ask = lambda seed: (
    omni.generate('hello', want='text', seed=seed, temperature=1.0, max_new=12)[0].text
  )
  assert ask(1) == ask(1)
  assert len({ask(seed) for seed in range(4)}) > 1


def test_guidance_changes_the_picture(omni):
  draw = lambda g: omni.generate('four', want='image', seed=0, guidance=g)[0].pixels
  assert not np.allclose(draw(1.0), draw(4.0), atol=1e-4)


@pytest.mark.parametrize(
  'want, kind', [('text', 'text'), ('image', 'image'), ('audio', 'audio')]
)
def test_want_is_what_comes(omni, want, kind):
  reply = omni.generate(
    [a_sound(), samples.text('?')], want=want, seed=0, temperature=1.0, max_new=16
  )
  assert [part.type for part in reply] == [kind]


def test_codec_round_trip_has_whole_frames(omni):
  waves = [a_sound(0)['wave'], a_sound(1)['wave'][:700]]
  codes = omni.codec_encode(waves)
  assert [len(code) for code in codes] == [3, 2]
  assert [len(wave) for wave in omni.codec_decode(codes)] == [3 * 640, 2 * 640]
  frames = jnp.asarray(
    np.pad(waves[0], (0, 3 * 640 - len(waves[0]))).reshape(1, 3, 640)
  )
  direct = codes_of(
    merge(omni_codec(omni), omni._buffers['codec']['params']),
    omni._codebooks,
    frames,
    jnp.ones((1, 3), jnp.int32),
  )
  np.testing.assert_array_equal(codes[0], np.asarray(direct)[0, :3])


def omni_codec(omni):
  from flax import nnx

  from omni_jax.modalities.audio.codec import Codec

  return nnx.eval_shape(
    lambda: Codec(omni.omni.codec, omni.omni.media.audio, rngs=nnx.Rngs(0))
  )


def test_loss_is_the_mean_over_examples(omni):
  few = samples.examples()[:2]
  both, one, two = omni.loss(few), omni.loss(few[:1]), omni.loss(few[1:])
  assert set(one) == {'text'} and set(two) == {'text', 'image'}
  assert min(one['text'], two['text']) < both['text'] < max(one['text'], two['text'])
  assert both['image'] == pytest.approx(two['image'], rel=1e-4)


def test_mistakes_are_refused(omni):
  with pytest.raises(UserError, match='smell'):
    omni.generate('x', want='smell')
  with pytest.raises(UserError, match='temprature'):
    omni.generate('x', want='text', temprature=1.0)
  with pytest.raises(UserError, match='context'):
    omni.generate('x' * 500, want='text')
  with pytest.raises(UserError, match='lang'):
    omni.generate('x', want='text', language='tlh')
