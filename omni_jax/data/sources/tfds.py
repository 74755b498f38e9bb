"""Data sets of TensorFlow Datasets by name, read from ArrayRecord files in random order of access.

TensorFlow itself is needed to make the files (once, with a network), and to open a set with a feature of type Audio.
"""

from collections.abc import Callable, Mapping, Sequence
import operator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from omni_jax.data.sources.pairs import only_medium_and_text, pair
from omni_jax.data.sources.records import may_pass
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.hosts import Hosts
from omni_jax.retry import patiently
from omni_jax.sequence.example import Example, Stored


class Field(NamedTuple):
  """A feature of the set as a part of an example."""

  name: str
  kind: str  # 'text', 'image', 'audio'
  part: Callable[
    [Any], dict[str, Any]
  ]  # from the value that is stored, media as bytes; may raise BadRecord


class TfdsExamples(Stored):
  """One split: what `read` holds is shown by the user, what `write` holds is the assistant's answer."""

  def __init__(
    self,
    name: str,
    source: Sequence[Mapping[str, Any]],
    read: Field,
    write: Field,
    hosts: Hosts,
    language: str = '',
  ):
    self.path = name  # as the files of other sources are called
    self.hosts = hosts
    self._source, self._read, self._write, self._language = (
      source,
      read,
      write,
      language,
    )

  def __len__(self) -> int:
    return len(self._source)

  def undecoded(self, index: SupportsIndex) -> Example:
    return self.stored(index)

  def stored(self, index: SupportsIndex) -> Example:
    """The example with its media as the bytes of files under 'data'."""
    index = self.place(index)
    id = f'{self.path}:{index}'
    try:
      record = patiently(lambda: self._source[index], id, passes=may_pass)
      return self._example(
        id, *(field.part(record[field.name]) for field in (self._read, self._write))
      )
    except BadRecord as error:
      raise error.of(id) from error
    except (
      OSError,
      RuntimeError,
      ValueError,
    ) as error:  # what the readers of the file and of the record raise
      raise BadRecord(f'cannot be read ({_line(error)})', id) from error

  def encoded(self, index: SupportsIndex) -> Example:
    """The kinds of the example's parts, nothing read: they are the same everywhere."""
    return self._example(
      f'{self.path}:{operator.index(index)}',
      {'type': self._read.kind},
      {'type': self._write.kind},
    )

  def _example(self, id: str, read: dict[str, Any], write: dict[str, Any]) -> Example:
    return {'id': id, **pair([read], write, self._language)}


def open_tfds(config: Any, hosts: Hosts, split: str) -> TfdsExamples:
  """A split of the set that `config.name` names; it is downloaded and made if it is not in `config.root` yet.

  Args:
    config: `config.data`: name; root, or '' for ~/tensorflow_datasets; read and write, the features of prompt and
      answer, or '' where there is no choice; language of the answer; rate, for sounds whose feature has none.
    split: as TensorFlow Datasets writes it: 'test', 'train[90%:]'.

  Raises:
    UserError: if the set, the split or a feature is unknown, or something is missing that is needed to get it.
  """
  if not config.name:
    raise UserError(
      "config.data.source='tfds' reads a set by its name: --config.data.name=mnist"
    )
  tfds = _library()
  builder = _prepared(tfds, config)
  features = builder.info.features
  fields = {
    name: field
    for name in sorted(features)
    if (field := _field(tfds, name, features[name], config))
  }
  read, write = _chosen(config, fields, builder.info.supervised_keys)
  for field in (read, write):
    if field.kind == 'audio' and not _rate(features[field.name], config):
      raise UserError(
        f'{config.name}: feature {field.name!r} does not say its sample rate: --config.data.rate=16000'
      )
  # Media stay as they are stored: their hosts decode them, with its limits and to the run's size.
  raw = {
    name: tfds.decode.SkipDecoding()
    for name, field in fields.items()
    if field.kind != 'text'
  }
  try:
    source = builder.as_data_source(split=split, decoders=raw)
  except NotImplementedError as error:
    raise UserError(
      f'{builder.data_dir}: holds no ArrayRecord files: make the set in another '
      '--config.data.root'
    ) from error
  except (KeyError, ValueError) as error:
    raise UserError(
      f'{config.name}: no split {split!r}; there are {", ".join(sorted(builder.info.splits))}, and parts '
      "of them such as 'train[90%:]'"
    ) from error
  return TfdsExamples(
    f'{config.name}/{split}', source, read, write, hosts, config.language
  )


def _library() -> Any:
  try:
    import tensorflow_datasets  # takes seconds, and is only there with an extra
  except ImportError as error:
    raise UserError(
      f"config.data.source='tfds' needs the package {error.name!r}: "
      "pip install 'omni_jax[tf]'"
    ) from error
  return tensorflow_datasets


def _prepared(tfds: Any, config: Any) -> Any:
  """The builder of a set whose files are there."""
  where = config.root or '~/tensorflow_datasets'
  try:
    builder = tfds.builder(
      config.name, data_dir=config.root or None, file_format='array_record'
    )
    if not builder.is_prepared():
      import tensorflow  # noqa: F401  every set's code needs it: better missed now than after the download

      builder.download_and_prepare()
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(
      f'config.data.name={config.name!r}: neither TensorFlow Datasets nor {where} has a set of this '
      'name; see https://www.tensorflow.org/datasets/catalog'
    ) from error
  except ImportError as error:
    raise UserError(
      f'{config.name}: cannot be made or opened without TensorFlow: '
      "pip install 'omni_jax[tf]'"
    ) from error
  except Exception as error:  # whatever the code of the set stumbles over: network, disk, an archive that has changed
    raise UserError(
      f'{config.name}: cannot be made in {where} ({_line(error)}): this needs a network; or make it '
      'where there is one, copy its folder and name it by --config.data.root'
    ) from error
  return builder


def _field(tfds: Any, name: str, feature: Any, config: Any) -> Field | None:
  """How a feature becomes a part; None for what is neither text nor a medium."""
  kinds = tfds.features
  if isinstance(feature, kinds.Image):
    return Field(name, 'image', lambda data: {'type': 'image', 'data': data})
  if isinstance(feature, kinds.Audio) or (
    type(feature) is kinds.Tensor and tuple(feature.shape) == (None,)
  ):
    rate = _rate(feature, config)
    return Field(
      name, 'audio', lambda data: {'type': 'audio', 'data': _sound(data, rate)}
    )
  if isinstance(feature, kinds.ClassLabel):
    return Field(
      name,
      'text',
      lambda number: {'type': 'text', 'text': feature.int2str(int(number))},
    )
  if isinstance(feature, kinds.Text):
    return Field(name, 'text', lambda text: {'type': 'text', 'text': _text(text)})
  return None


def _chosen(
  config: Any, fields: Mapping[str, Field], supervised: Any
) -> tuple[Field, Field]:
  """Prompt and answer: what the config names, else what the set says, else its only medium and its only text."""
  guess = only_medium_and_text({name: field.kind for name, field in fields.items()})
  if (
    isinstance(supervised, tuple)
    and len(supervised) == 2
    and set(supervised) <= fields.keys()
  ):
    guess = supervised
  names = config.read or guess[0], config.write or guess[1]
  if not set(names) <= fields.keys():
    known = (
      ', '.join(f'{name} ({field.kind})' for name, field in fields.items())
      or 'nothing that can be used'
    )
    raise UserError(
      f'{config.name} has {known}: name the prompt by --config.data.read, the answer by '
      f'--config.data.write (now {names[0]!r} and {names[1]!r})'
    )
  return fields[names[0]], fields[names[1]]


def _rate(feature: Any, config: Any) -> int:
  """Samples per second; 0 where nobody says."""
  return getattr(feature, 'sample_rate', None) or config.rate


def _sound(data: Any, rate: int) -> bytes:
  """A file of samples of 16 bits or in [-1, 1], (samples,) or (samples, channels); a file stays as it is."""
  if isinstance(data, bytes):
    return data
  wave = np.asarray(data)
  if wave.ndim == 2:
    wave = wave.mean(axis=1, dtype=np.float64)
  if np.issubdtype(np.asarray(data).dtype, np.integer):
    wave = wave / 32768
  if not np.isfinite(wave).all() or np.abs(wave).max(initial=0) > 1:
    raise BadRecord('sound of samples that are neither of 16 bits nor between -1 and 1')
  return wav_bytes(wave, rate)


def _text(text: str | bytes) -> str:
  try:
    return text.decode() if isinstance(text, bytes) else str(text)
  except UnicodeDecodeError as error:
    raise BadRecord(f'text is not UTF-8 at byte {error.start}') from error


def _line(error: BaseException) -> str:
  """Its kind and the first of its lines."""
  return f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0][:200]}'
