"""Generates replies: `python -m omni_jax.generate --workdir=DIR --prompt=… --out=DIR`.

The prompt is text, with --image=FILE or --audio=FILE before it, or a .json file in the
chat form. --want says what the reply holds. --mesh.AXIS=N splits the work, such as
--mesh.tensor=8 (see docs/running.md); by default all devices of this process share it.
"""

from collections.abc import Sequence
import json
import sys

from absl import flags, logging
from etils import epath

from omni_jax.command_line import mesh_flags, show_help
from omni_jax.config import AVERAGE, WEIGHTS
from omni_jax.errors import BadRecord, run_command, UserError
from omni_jax.modalities.contract import Part as ReplyPart
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.modalities.text.tokenizer import ANY
from omni_jax.paths import checked, write_files
from omni_jax.sequence.example import decoded_part, Example, MEDIA, Part, text_part

NOT_YET = ('video',)  # media that users may expect but that do not exist yet
_FLAGS = flags.FlagValues()
for name, text in {
  'workdir': 'folder of a trained run',
  'prompt': 'text, or a .json file in the chat form',
  'out': 'folder for the replies',
  'language': 'language of the answer',
  'voice': 'voice of the answer',
}.items():
  flags.DEFINE_string(name, '', text, flag_values=_FLAGS)
for name in MEDIA:
  flags.DEFINE_string(
    name, '', f'{name} file to read before the text', flag_values=_FLAGS
  )
for name in NOT_YET:
  flags.DEFINE_string(name, '', 'not supported yet', flag_values=_FLAGS)
flags.DEFINE_string(
  'want', ANY, f'{TEXT}, {", ".join(MEDIA)} or {ANY}', flag_values=_FLAGS
)
flags.DEFINE_integer('seed', 0, 'seed of sampling', flag_values=_FLAGS)
flags.DEFINE_integer(
  'step', None, 'step of the checkpoint; the last one by default', flag_values=_FLAGS
)
flags.DEFINE_enum(
  'weights',
  AVERAGE,
  WEIGHTS,
  'the moving average of the weights, where the run keeps one, or the trained weights',
  flag_values=_FLAGS,
)
flags.DEFINE_integer('n', 1, 'number of replies', lower_bound=1, flag_values=_FLAGS)
flags.DEFINE_float(
  'temperature',
  None,
  'temperature of text and speech; 0 takes the most likely id',
  lower_bound=0,
  flag_values=_FLAGS,
)
flags.DEFINE_float(
  'top_p',
  None,
  'probability mass of nucleus sampling',
  lower_bound=0,
  upper_bound=1,
  flag_values=_FLAGS,
)
flags.DEFINE_float(
  'guidance',
  None,
  'classifier-free guidance of the image head; 1 for none',
  flag_values=_FLAGS,
)


def _content(hosts: Hosts) -> list[Part]:
  """Returns the media files and the text of --prompt as parts of a message."""
  from omni_jax.sequence.read_media import read_media

  parts = []
  for kind in MEDIA:
    path = _FLAGS[kind].value
    if not path:
      continue
    try:
      data = read_media(checked(path, f'--{kind}'))
      parts.append(decoded_part(kind, data, hosts))
    except (BadRecord, OSError, UserError) as error:
      raise UserError(f'--{kind}={path}: {error}') from error
  if _FLAGS.prompt:
    parts.append(text_part(_FLAGS.prompt))
  return parts


def _prompt(hosts: Hosts) -> list[Part] | Example:
  """Returns the prompt that the flags give."""
  if not _FLAGS.prompt.endswith('.json'):
    return _content(hosts)
  from omni_jax.data.sources.jsonl import read_prompt

  return read_prompt(checked(_FLAGS.prompt, '--prompt'), hosts)


def _options() -> dict[str, float]:
  """Returns the options of generation that are given on the command line."""
  options = {}
  for name in ('temperature', 'top_p', 'guidance'):
    value = _FLAGS[name].value
    if value is not None:
      options[name] = value
  if 'temperature' in options:
    options['speech_temperature'] = options['temperature']
  return options


def _write(
  replies: Sequence[Sequence[ReplyPart]], folder: epath.Path, hosts: Hosts
) -> None:
  """Writes a file for each image or sound, and replies.json with texts and file names.

  Files appear in the folder only when all are complete, replies.json last.
  """
  files: dict[str, bytes] = {}
  entries = []
  for i, parts in enumerate(replies):
    content = []
    for j, part in enumerate(parts):
      if part.type == TEXT:
        content.append(text_part(part.text))
        continue
      host = hosts[part.type]
      shown = host.show(getattr(part, host.key))
      name = f'{i:03d}_{j}.{shown.suffix}'
      files[name] = shown.data
      content.append({'type': part.type, 'path': name})
    entries.append({'content': content})
  text = json.dumps({'replies': entries}, ensure_ascii=False, indent=2)
  files['replies.json'] = f'{text}\n'.encode()
  write_files(folder, files)
  print(json.dumps(entries, ensure_ascii=False))


def _parse() -> dict[str, int] | None:
  """Reads the command line into the flags, and returns the sizes of the mesh if given.

  Raises:
    UserError: for an unknown or missing flag, or a value that is not accepted.
  """
  show_help(_FLAGS, sys.argv)
  arguments = mesh_flags(sys.argv)
  try:
    rest = _FLAGS(arguments.others)[1:]
  except flags.Error as error:
    raise UserError(str(error)) from error
  usage = "give --workdir=DIR, --out=DIR and --prompt='text' or FILE.json"
  if rest:
    raise UserError(f'{usage}, not {rest}')
  if not _FLAGS.workdir or not _FLAGS.out:
    raise UserError(usage)
  known = ' or '.join(f'--{name}' for name in MEDIA)
  for name in NOT_YET:
    if _FLAGS[name].value:
      raise UserError(f'--{name}: {name} is not supported yet; give {known}')
  return arguments.sizes


def main() -> None:
  """Runs the command with the arguments of the process."""
  mesh = _parse()
  out = checked(_FLAGS.out, '--out')
  logging.set_verbosity(logging.ERROR)
  from omni_jax.generate.api import load
  from omni_jax.generate.prompt import chat

  trained = load(_FLAGS.workdir, _FLAGS.step, _FLAGS.weights, mesh)
  content = _prompt(trained.hosts)
  prompt = chat(content, _FLAGS.want, language=_FLAGS.language, voice=_FLAGS.voice)
  prompts = [prompt] * _FLAGS.n
  replies = trained.generate_batch(prompts, _FLAGS.want, _FLAGS.seed, **_options())
  _write(replies, epath.Path(out), trained.hosts)


if __name__ == '__main__':
  run_command(main)
