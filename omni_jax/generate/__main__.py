"""`python -m omni_jax.generate --workdir=DIR --prompt=FILE.json|'text' [--image=F --audio=F] --want=any --out=DIR`"""

import json
import pathlib
import shutil
import sys
from typing import Any

from absl import flags, logging

from omni_jax.errors import BadRecord, run_command, UserError
from omni_jax.modalities.hosts import HOSTS, Hosts, TEXT
from omni_jax.sequence.example import decoded_part

MEDIA = {name: host for name, (_, host) in HOSTS.items() if name != TEXT}
NOT_YET = ('video',)  # media that people ask for and that are not there
_FLAGS = flags.FlagValues()
for name, text in {
  'workdir': 'folder of a trained run',
  'prompt': 'text, or a .json file in the chat form',
  **{name: f'a file to read before the text: {name}' for name in MEDIA},
  **{name: 'not there yet' for name in NOT_YET},
  'out': 'folder for the replies',
  'language': 'language of the answer',
  'voice': 'voice of the answer',
}.items():
  flags.DEFINE_string(name, '', text, flag_values=_FLAGS)
flags.DEFINE_string(
  'want', 'any', f'text, {", ".join(MEDIA)} or any', flag_values=_FLAGS
)
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


def _parts(hosts: Hosts) -> list[dict[str, Any]]:
  """Returns the content that the files and --prompt='text' make up."""
  from omni_jax.sequence.media import read_media

  parts = []
  for kind in MEDIA:
    path = _FLAGS[kind].value
    if not path:
      continue
    try:
      parts.append(decoded_part(kind, read_media(path), hosts))
    except (BadRecord, OSError, UserError) as error:
      raise UserError(f'--{kind}={path}: {error}') from error
  if _FLAGS.prompt:
    parts.append({'type': TEXT, 'text': _FLAGS.prompt})
  return parts


def _prompt(hosts: Hosts) -> Any:
  if not _FLAGS.prompt.endswith('.json'):
    return _parts(hosts)
  from omni_jax.data.sources.jsonl import read_prompt

  return read_prompt(_FLAGS.prompt, hosts)


def _write(replies: list, folder: pathlib.Path, hosts: Hosts) -> None:
  """Writes a file for each medium and one replies.json that names them in order.

  The folder appears whole or not at all.
  """
  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  listed = []
  for i, parts in enumerate(replies):
    content = []
    for j, part in enumerate(parts):
      if part.type == TEXT:
        content.append({'type': TEXT, 'text': part.text})
        continue
      host = hosts[part.type]
      shown = host.show(getattr(part, host.key))
      name = f'{i:03d}_{j}.{shown.suffix}'
      (partial / name).write_bytes(shown.data)
      content.append({'type': part.type, 'path': name})
    listed.append({'content': content})
  text = json.dumps({'replies': listed}, ensure_ascii=False, indent=2)
  (partial / 'replies.json').write_text(text + '\n')
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
  for name in NOT_YET:
    if _FLAGS[name].value:
      raise UserError(
        f'--{name}: this model has no {name} modality yet; give {" or ".join(f"--{known}" for known in MEDIA)}'
      )
  logging.set_verbosity(logging.ERROR)
  from omni_jax.generate.api import load
  from omni_jax.generate.prompt import chat

  trained = load(_FLAGS.workdir, _FLAGS.step, _FLAGS.weights)
  hosts = trained.hosts
  control = dict(language=_FLAGS.language, voice=_FLAGS.voice)
  prompt = chat(_prompt(hosts), _FLAGS.want, **control)
  given = {name: _FLAGS[name].value for name in ('temperature', 'top_p', 'guidance')}
  options = {name: value for name, value in given.items() if value is not None}
  if 'temperature' in options:
    options['speech_temperature'] = options['temperature']
  prompts = [prompt] * _FLAGS.n
  replies = trained.generate_batch(prompts, _FLAGS.want, _FLAGS.seed, **options)
  _write(replies, pathlib.Path(_FLAGS.out), hosts)


if __name__ == '__main__':
  run_command(main)
