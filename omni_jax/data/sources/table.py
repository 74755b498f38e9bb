"""The table of data sources that `config.data.source` can name."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict
import numpy as np

from omni_jax.data.sources.digits import DigitExamples, load_digits
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.mixture import Drawing, Mixture, mixture_of, part_of
from omni_jax.data.sources.payloads import named_payloads, Payloads, sampled_payloads
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.data.sources.ready.sets import open_ready, READY
from omni_jax.data.sources.records import ArrayRecordExamples
from omni_jax.data.sources.shards import check_tokenizer, shards_in
from omni_jax.data.sources.text_file import TextFile
from omni_jax.data.sources.tfds import open_tfds
from omni_jax.data.sources.without_voice import WithoutVoice
from omni_jax.errors import UserError
from omni_jax.mirror import local_copy
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.sequence.example import Example

# Names of the evaluation tasks; omni_jax.evaluate has the table of what they do.
DIRECTIONS = 'directions'
LOSS = 'loss'
EXAMPLES = 'examples'


def _no_folders(config: ConfigDict, key: str) -> list[str]:
  return []


class Source(NamedTuple):
  """One value of `config.data.source`.

  Its functions take `config.data`, or the config of a part of a mixture.

  Attributes:
    train: opens the training examples.
    held_out: opens the held-out part, or returns None; None if the source has none.
    held_out_key: the key of config.data without which nothing is held out.
    payloads: collects the media that an autoencoder is trained on. Its arguments are
      the result of `train`, the medium, and a limit of the examples to decode.
    evaluation: the task by which a run on this source is evaluated.
    labelled: opens the training examples whose labels judges are fitted to, if any.
    folders: lists the converted folders that a key of config.data names.
  """

  train: Callable[[ConfigDict, Hosts], Sequence[Example]]
  held_out: Callable[[ConfigDict, Hosts], Sequence[Example] | None] | None = None
  held_out_key: str = ''
  payloads: Callable[[Any, str, int], Payloads] = sampled_payloads
  evaluation: str = EXAMPLES
  labelled: Callable[[ConfigDict, Hosts], JsonLines | None] | None = None
  folders: Callable[[ConfigDict, str], list[str]] = _no_folders


def _files(config: ConfigDict, key: str) -> list[str]:
  if not config.root:
    raise UserError(
      f'config.data.source={config.source!r} reads files: name their folder with '
      '--config.data.root=DIR'
    )
  return [f'{config.root}/{part}' for part in config[key].split(',')]


def _local_files(config: ConfigDict, key: str) -> list[str]:
  """Returns the files or folders that a key names, those in buckets as copies."""
  return [local_copy(path) for path in _files(config, key)]


def _digits(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  return DigitExamples(
    load_digits(config),
    dict(config.recipes),
    seed=config.seed,
    spoken_takes=config.spoken_takes,
  )


def _digit_payloads(examples: DigitExamples, medium: str, limit: int) -> Payloads:
  """Returns the digits' own clips or images, all of them whatever the limit."""
  del limit
  return Payloads(examples.payloads(medium), [])


def _jsonl(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  (file,) = _files(config, 'train_file')
  return _without_voice(config, JsonLines(file, hosts))


def _jsonl_held_out(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  return JsonLines(epath.Path(config.root) / config.eval_file, hosts)


def _jsonl_labelled(config: ConfigDict, hosts: Hosts) -> JsonLines | None:
  """Opens the file that the run was trained on, if it still exists."""
  if not config.train_file:
    return None
  path = epath.Path(config.root) / config.train_file
  return JsonLines(path, hosts) if path.is_file() else None


def _without_voice(
  config: ConfigDict, lines: JsonLines | ReadySet
) -> Sequence[Example]:
  return WithoutVoice(lines, config.leave_out) if config.leave_out else lines


def _array_records(config: ConfigDict, hosts: Hosts, key: str) -> ArrayRecordExamples:
  """Opens the converted folders, or the single files, that a key names."""
  shards: list[str] = []
  for path in _local_files(config, key):
    shards += shards_in(path) or [path]
  return ArrayRecordExamples(shards, hosts)


def _array_record(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  return _array_records(config, hosts, 'train_file')


def _array_record_held_out(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  return _array_records(config, hosts, 'eval_file')


def _array_record_folders(config: ConfigDict, key: str) -> list[str]:
  return _local_files(config, key) if config[key] else []


def _text(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  (file,) = _files(config, 'train_file')
  return TextFile(file, length=config.piece, train=True)


def _text_held_out(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  path = epath.Path(config.root) / config.train_file
  return TextFile(path, length=config.piece, train=False)


def _tfds(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  return open_tfds(config, hosts, config.train_split)


def _tfds_held_out(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  return open_tfds(config, hosts, config.eval_split)


def _ready(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  return _without_voice(config, open_ready(config, hosts, config.train_split))


def _ready_held_out(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  return open_ready(config, hosts, config.eval_split)


def _mixture(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  return mixture_of(config, lambda part: training_examples(part, hosts))


def _mixture_held_out(config: ConfigDict, hosts: Hosts) -> Sequence[Example] | None:
  """Opens the file that the mixture names, or else what its sources hold out."""
  if config.eval_file:
    return _jsonl_held_out(config, hosts)
  parts: dict[str, Sequence[Example]] = {}
  for name in sorted(config.sources):
    examples = _held_out(part_of(config, name), hosts)
    if examples is not None:
      parts[name] = examples
  return Mixture(parts, dict.fromkeys(parts, Drawing())) if parts else None


def _mixture_folders(config: ConfigDict, key: str) -> list[str]:
  folders: list[str] = []
  for name in config.sources:
    folders += converted_folders(part_of(config, name), key)
  return folders


READY_SET = Source(_ready, _ready_held_out, 'eval_split', named_payloads)
SOURCES: dict[str, Source] = {
  'digits': Source(_digits, payloads=_digit_payloads, evaluation=DIRECTIONS),
  'jsonl': Source(
    _jsonl, _jsonl_held_out, 'eval_file', named_payloads, labelled=_jsonl_labelled
  ),
  'array_record': Source(
    _array_record, _array_record_held_out, 'eval_file', folders=_array_record_folders
  ),
  'text': Source(_text, _text_held_out, 'train_file', evaluation=LOSS),
  'tfds': Source(_tfds, _tfds_held_out, 'eval_split'),
  'mixture': Source(_mixture, _mixture_held_out, 'sources', folders=_mixture_folders),
  **dict.fromkeys(READY, READY_SET),
}


def source_of(config: ConfigDict) -> Source:
  """Returns the row of the table that `config.data` names.

  Raises:
    UserError: if there is none.
  """
  if config.source not in SOURCES:
    raise UserError(
      f'config.data.source={config.source!r} is unknown; it is one of {sorted(SOURCES)}'
    )
  return SOURCES[config.source]


def training_examples(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  """Opens the training examples that `config.data` names, with random access."""
  return source_of(config).train(config, hosts)


def held_out(config: ConfigDict, hosts: Hosts) -> Sequence[Example]:
  """Opens the examples that a run on `config.data` is evaluated on.

  For a mixture these are the examples of the file that it names, or else a mixture of
  the held-out parts of its sources.

  Raises:
    UserError: if nothing is held out.
  """
  examples = _held_out(config, hosts)
  if examples is None:
    raise UserError(
      f'config.data.source={config.source!r} holds out nothing to evaluate on: set '
      'config.data.eval_split or eval_file (for a mixture, that of one of its '
      'sources), or evaluate with --data=FILE.jsonl'
    )
  return examples


def _held_out(config: ConfigDict, hosts: Hosts) -> Sequence[Example] | None:
  source = source_of(config)
  if source.held_out is None or not config[source.held_out_key]:
    return None
  return source.held_out(config, hosts)


def labelled_examples(config: ConfigDict, hosts: Hosts) -> JsonLines | None:
  """Opens the training examples whose labels the judges of an evaluation are fitted to.

  Returns None if the source has none.
  """
  source = source_of(config)
  return source.labelled(config, hosts) if source.labelled else None


def training_payloads(
  config: ConfigDict, hosts: Hosts, medium: str, limit: int = 20_000
) -> list[np.ndarray]:
  """Returns the payloads that an autoencoder of a medium is trained on, each once.

  These are the digits' own clips or images; for JSON lines and ready sets, every
  payload that the model writes (all that it reads, if it writes none); for records,
  whose media have no names, every payload of about `limit` examples, evenly spread; for
  a mixture, the payloads of as many examples from each source.

  Raises:
    UserError: if there are none.
  """
  source = source_of(config)
  payloads = source.payloads(source.train(config, hosts), medium, limit)
  if payloads.arrays:
    return payloads.arrays
  data = config.name or config.root
  problem = f'{data} holds no {medium}'
  if payloads.refused:
    count = len(payloads.refused)
    first = payloads.refused[0]
    problem = f'no {medium} in {data} can be used ({count} are refused, first: {first})'
  raise UserError(
    f'{problem}: the stage that trains its autoencoder needs some; or leave that stage '
    'out of config.stages'
  )


def converted_folders(config: ConfigDict, key: str = 'train_file') -> list[str]:
  """Returns the converted folders of the data, also within a mixture; opens no shard.

  It is separate from opening them, so that a run can refuse a folder before its first
  stage.
  """
  return source_of(config).folders(config, key)


def check_tokenizers(
  config: ConfigDict, tokenizer: Tokenizer, key: str = 'train_file'
) -> None:
  """Raises UserError if a folder was converted for another tokenizer."""
  for path in converted_folders(config, key):
    check_tokenizer(path, tokenizer)
