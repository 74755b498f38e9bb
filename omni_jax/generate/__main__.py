"""`python -m omni_jax.generate --workdir=DIR --prompt=FILE.json|'text' [--image=F --audio=F] --want=any --out=DIR`"""

import json
import pathlib
import shutil
import sys
from typing import Any

from absl import flags, logging

from omni_jax.errors import run_command, UserError

_FLAGS = flags.FlagValues()
for name, text in {
  'workdir': 'folder of a trained run',
  'prompt': 'text, or a .json file in the chat form',
  'image': 'an image to read, before the text',
  'audio': 'a sound to hear, before the text',
  'video': 'not there yet',
  'out': 'folder for the replies',
  'language': 'language of the answer',
  'voice': 'voice of the answer',
}.items():
  flags.DEFINE_string(name, '', text, flag_values=_FLAGS)
flags.DEFINE_string('want', 'any', 'text, image, audio or any', flag_values=_FLAGS)
flags.DEFINE_integer('seed', 0, 'of the sampling', flag_values=_FLAGS)
flags.DEFINE_integer(
  'step', None, 'checkpoint; the last by default', flag_values=_FLAGS
)
flags.DEFINE_enum(
  'weights',
  'average',
  ['average', 'raw'],
  'the moving average of the weights, where the run '
  'keeps one, or the weights as trained',
  flag_values=_FLAGS,
)
flags.DEFINE_integer('n', 1, 'replies to write', lower_bound=1, flag_values=_FLAGS)
flags.DEFINE_float(
  'temperature',
  None,
  'of text and speech; 0 takes the best',
  lower_bound=0,
  flag_values=_FLAGS,
)
flags.DEFINE_float(
  'top_p', None, 'nucleus', lower_bound=0, upper_bound=1, flag_values=_FLAGS
)
flags.DEFINE_float(
  'guidance', None, 'of the image head; 1 for none', flag_values=_FLAGS
)


def _parts(media: Any) -> list[dict[str, Any]]:
  """The content that --image, --audio and --prompt='text' make up."""
  from omni_jax.sequence.media import BadRecord, decode_audio, decode_image, read_media

  parts = []
  for kind, decode, config in (
    ('image', decode_image, media.image),
    ('audio', decode_audio, media.audio),
  ):
    if path := _FLAGS[kind].value:
      try:
        value = decode(read_media(path), config)
      except (BadRecord, OSError) as error:
        raise UserError(f'--{kind}={path}: {error}') from error
      parts.append({'type': kind, 'pixels' if kind == 'image' else 'wave': value})
  if _FLAGS.prompt:
    parts.append({'type': 'text', 'text': _FLAGS.prompt})
  return parts


def _prompt(media: Any) -> Any:
  if not _FLAGS.prompt.endswith('.json'):
    return _parts(media)
  from omni_jax.data.sources.jsonl import read_prompt

  return read_prompt(_FLAGS.prompt, media)


def _write(replies: list, folder: pathlib.Path) -> None:
  """PNG, WAV and one replies.json that names them in order; the folder appears whole or not at all."""
  from omni_jax.sequence.media import png_bytes, wav_bytes

  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  listed = []
  for i, parts in enumerate(replies):
    content = []
    for j, part in enumerate(parts):
      if part.type == 'text':
        content.append({'type': 'text', 'text': part.text})
        continue
      name = f'{i:03d}_{j}.{"png" if part.type == "image" else "wav"}'
      data = (
        png_bytes(part.pixels)
        if part.type == 'image'
        else wav_bytes(part.wave, part.rate)
      )
      (partial / name).write_bytes(data)
      content.append({'type': part.type, 'path': name})
    listed.append({'content': content})
  (partial / 'replies.json').write_text(
    json.dumps({'replies': listed}, ensure_ascii=False, indent=2) + '\n'
  )
  folder.mkdir(exist_ok=True)
  for file in sorted(partial.iterdir(), key=lambda f: f.suffix == '.json'):
    file.replace(folder / file.name)
  partial.rmdir()
  print(json.dumps(listed, ensure_ascii=False))


def main() -> None:
  try:
    rest = _FLAGS(sys.argv)[1:]
  except flags.Error as error:
    raise UserError(str(error)) from error
  if rest or not _FLAGS.workdir or not _FLAGS.out:
    raise UserError(
      f"give --workdir=DIR, --out=DIR and --prompt='text' or FILE.json{f', not {rest}' if rest else ''}"
    )
  if _FLAGS.video:
    raise UserError(
      '--video: this model has no video modality yet; give --image or --audio'
    )
  logging.set_verbosity(logging.ERROR)
  from omni_jax.generate.api import load
  from omni_jax.generate.prompt import chat

  omni = load(_FLAGS.workdir, _FLAGS.step, _FLAGS.weights)
  prompt = chat(
    _prompt(omni.omni.media), _FLAGS.want, language=_FLAGS.language, voice=_FLAGS.voice
  )
  given = {name: _FLAGS[name].value for name in ('temperature', 'top_p', 'guidance')}
  options = {name: value for name, value in given.items() if value is not None}
  if 'temperature' in options:
    options['speech_temperature'] = options['temperature']
  replies = omni.generate_batch(
    [prompt] * _FLAGS.n, _FLAGS.want, _FLAGS.seed, **options
  )
  _write(replies, pathlib.Path(_FLAGS.out))


if __name__ == '__main__':
  run_command(main)
