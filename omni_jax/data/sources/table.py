"""The table of data sources: what `config.data.source` can name, and the examples or clips that it gives."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from omni_jax.data.sources.digits import DigitExamples, load_digits
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.mixture import Mixture, mixture_of
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.data.sources.ready.sets import open_ready, READY
from omni_jax.data.sources.records import ArrayRecordExamples
from omni_jax.data.sources.shards import check_tokenizer, shards_in
from omni_jax.data.sources.text_file import TextFile
from omni_jax.data.sources.tfds import open_tfds
from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.sequence.example import Example, parts_of
from omni_jax.sequence.media import BadRecord
from omni_jax.types import MediaConfig


def _digits(config: Any, media: MediaConfig) -> Sequence[Example]:
  return DigitExamples(
    load_digits(config),
    dict(config.recipes),
    seed=config.seed,
    spoken_takes=config.spoken_takes,
  )


def _files(config: Any, name: str) -> list[str]:
  if not config.root:
    raise UserError(
      f'config.data.source={config.source!r} reads files: give their folder, --config.data.root=DIR'
    )
  return [f'{config.root}/{part}' for part in config[name].split(',')]


class WithoutVoice(Sequence):
  """The examples of a file or a ready set in which one voice neither is heard nor speaks."""

  def __init__(self, lines: JsonLines | ReadySet, voice: str):
    self.lines = lines
    self._kept = [
      k for k in range(len(lines)) if voice not in _voices(lines.encoded(k))
    ]
    if len(self._kept) in (0, len(lines)):
      raise UserError(
        f'config.data.leave_out={voice!r}: {"all" if not self._kept else "none"} of the {len(lines)} '
        f'examples of {lines.path} have this voice'
      )

  def __len__(self) -> int:
    return len(self._kept)

  def identity(self) -> str:
    return self.lines.identity()  # the number of examples tells what was left out

  def __getitem__(self, index: int) -> Example:
    return self.lines[self._kept[index]]

  def encoded(self, index: int) -> Example:
    return self.lines.encoded(self._kept[index])


def _voices(example: Example) -> set[str]:
  return {part.get('voice', '') for part in parts_of(example)} | {
    message.get('voice', '') for message in example.get('messages', [])
  }


def _jsonl(config: Any, media: MediaConfig) -> Sequence[Example]:
  (file,) = _files(config, 'train_file')
  return _without_voice(config, JsonLines(file, media))


def _without_voice(config: Any, lines: JsonLines | ReadySet) -> Sequence[Example]:
  return WithoutVoice(lines, config.leave_out) if config.get('leave_out') else lines


def _ready(config: Any, media: MediaConfig) -> Sequence[Example]:
  return _without_voice(config, open_ready(config, media, config.train_split))


def _array_record(config: Any, media: MediaConfig) -> Sequence[Example]:
  return array_records(config, media, 'train_file')


def array_records(config: Any, media: MediaConfig, name: str) -> ArrayRecordExamples:
  """What `config.data.train_file` or `eval_file` names: folders that `omni_jax.convert` wrote, or single files."""
  return ArrayRecordExamples(
    [shard for path in _files(config, name) for shard in shards_in(path) or [path]],
    media,
  )


def converted_folders(config: Any, name: str = 'train_file') -> list[str]:
  """What of the data was converted, also within a mixture; opens no shard.

  Apart from the opening, so that a run can refuse a folder before its first stage.
  """
  if config.source == 'mixture':
    return [
      path for part in config.sources.values() for path in converted_folders(part, name)
    ]
  return (
    _files(config, name) if config.source == 'array_record' and config.get(name) else []
  )


def check_tokenizers(
  config: Any, tokenizer: Tokenizer, name: str = 'train_file'
) -> None:
  """Refuses folders that were converted for another tokenizer."""
  for path in converted_folders(config, name):
    check_tokenizer(path, tokenizer)


def _text(config: Any, media: MediaConfig) -> Sequence[Example]:
  (file,) = _files(config, 'train_file')
  return TextFile(file, length=config.piece, train=True)


def _tfds(config: Any, media: MediaConfig) -> Sequence[Example]:
  return open_tfds(config, media, config.train_split)


def _mixture(config: Any, media: MediaConfig) -> Sequence[Example]:
  return mixture_of(config, lambda part: training_examples(part, media))


SOURCES = {
  'digits': _digits,
  'jsonl': _jsonl,
  'array_record': _array_record,
  'text': _text,
  'tfds': _tfds,
  'mixture': _mixture,
  **dict.fromkeys(READY, _ready),
}


def training_examples(config: Any, media: MediaConfig) -> Sequence[Example]:
  """Random access to the training examples that `config.data` names."""
  if config.source not in SOURCES:
    raise UserError(
      f'config.data.source={config.source!r} is unknown; it is one of {sorted(SOURCES)}'
    )
  return SOURCES[config.source](config, media)


def training_clips(
  config: Any, media: MediaConfig, limit: int = 20_000
) -> list[np.ndarray]:
  """Waves for the codec stage, once each.

  The digits' own clips; of JSON lines and ready sets every sound that the model is to speak (of all that it hears,
  where it speaks none); of records, whose media have no names, every sound of `limit` examples, evenly spread; of a
  mixture as many of each source.
  """
  if config.source == 'digits':
    return [clip.wave for clip in load_digits(config).train_clips]
  examples = training_examples(config, media)
  waves, bad = (
    _spoken_waves(examples)
    if config.source in ('jsonl', *READY)
    else _all_waves(examples, limit)
  )
  if not waves:
    why = f'{len(bad)} are refused, the first: {bad[0]}' if bad else 'there is none'
    raise UserError(
      f'no sound in {config.get("name") or config.get("root")} can be used ({why}): the codec stage '
      'needs some, or leave it out of config.stages'
    )
  return list(waves.values())


def _spoken_waves(
  lines: JsonLines | ReadySet | WithoutVoice,
) -> tuple[dict[str, np.ndarray], list[BadRecord]]:
  """By path; and what cannot be used, which the loader of the omni stage counts."""
  parts: dict[bool, dict[str, Example]] = {True: {}, False: {}}
  for k in range(len(lines)):
    example = lines.encoded(k)
    for message in example.get('messages', [example]):
      written = message.get('role') != 'user'
      parts[written] |= {
        part['path']: part for part in message['content'] if part['type'] == 'audio'
      }
  source, waves, bad = getattr(lines, 'lines', lines), {}, []
  for path, part in (parts[True] or parts[False]).items():
    try:
      waves[path] = source.decode(part)['wave']
    except BadRecord as error:
      bad.append(error)
  return waves, bad


def _all_waves(
  examples: Sequence[Example], limit: int
) -> tuple[dict[int, np.ndarray], list[BadRecord]]:
  """By content; and what cannot be used."""
  waves, bad = {}, []
  for source in Mixture.of(examples).sources:
    for i in range(0, len(source), -(-len(source) // limit)):
      try:
        sounds = (
          _sounds(source[i])
          if not hasattr(source, 'encoded') or _sounds(source.encoded(i))
          else []
        )
      except BadRecord as error:
        bad.append(error)
        continue
      waves |= {hash(part['wave'].tobytes()): part['wave'] for part in sounds}
  return waves, bad


def _sounds(example: Example) -> list[dict[str, Any]]:
  return [part for part in parts_of(example) if part['type'] == 'audio']
