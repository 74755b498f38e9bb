"""Reads data sets of TensorFlow Datasets by name, from their ArrayRecord files.

TensorFlow itself is needed only to prepare the files (once, with a network), and to
open a set that has a feature of type Audio.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
import operator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from omni_jax.data.sources.pairs import infer_columns, pair_example
from omni_jax.data.sources.records import is_transient
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.audio.sizes import FULL_SCALE
from omni_jax.modalities.hosts import Hosts
from omni_jax.retry import with_retries
from omni_jax.sequence.example import Example, StoredExamplesBase, text_part


class Field(NamedTuple):
  """A feature of a set that becomes a part of an example.

  Attributes:
    name: name of the feature.
    kind: type of the part: 'text', 'image' or 'audio'.
    part: returns the part of a stored value, media as bytes; may raise BadRecord.
  """

  name: str
  kind: str
  part: Callable[[Any], dict[str, Any]]


class TfdsExamples(StoredExamplesBase):
  """The examples of one split.

  Args:
    name: name of the set and split, in ids and messages.
    source: the split's records.
    read: feature of the user's message.
    write: feature of the assistant's answer.
    hosts: hosts that decode the media.
    language: language of the answer; '' to leave it open.
  """

  def __init__(
    self,
    name: str,
    source: Sequence[Mapping[str, Any]],
    read: Field,
    write: Field,
    hosts: Hosts,
    language: str = '',
  ):
    self.path = name
    self.hosts = hosts
    self._source = source
    self._read = read
    self._write = write
    self._language = language

  def __len__(self) -> int:
    return len(self._source)

  def undecoded(self, index: SupportsIndex) -> Example:
    """Returns what `decode` takes: the example with its media as bytes."""
    return self.stored(index)

  def stored(self, index: SupportsIndex) -> Example:
    """Returns an example with the encoded bytes of its media under 'data'.

    Raises:
      BadRecord: if the record cannot be read or used.
    """
    index = self.checked_index(index)
    id = f'{self.path}:{index}'
    try:
      record = with_retries(lambda: self._source[index], id, retryable=is_transient)
      question = self._read.part(record[self._read.name])
      answer = self._write.part(record[self._write.name])
    except BadRecord as error:
      raise error.of(id) from error
    except (OSError, RuntimeError, ValueError) as error:
      # The readers of the file and of the record raise these.
      raise BadRecord(f'cannot be read ({_first_line(error)})', id) from error
    return self._example(id, question, answer)

  def encoded(self, index: SupportsIndex) -> Example:
    """Returns an example whose parts have only their types, which are always the same.

    Nothing is read.
    """
    id = f'{self.path}:{operator.index(index)}'
    question = {'type': self._read.kind}
    answer = {'type': self._write.kind}
    return self._example(id, question, answer)

  def _example(
    self, id: str, question: dict[str, Any], answer: dict[str, Any]
  ) -> Example:
    return {'id': id, **pair_example([question], answer, self._language)}


def open_tfds(config: Any, hosts: Hosts, split: str) -> TfdsExamples:
  """Opens a split of a set; the set is downloaded and prepared if it is not there yet.

  Args:
    config: `config.data`: `name` is the set; `root` its folder, or '' for
      ~/tensorflow_datasets; `read` and `write` are the features of prompt and answer,
      or '' if there is no choice; `language` is that of the answer; `rate` the samples
      per second of sounds whose feature does not give it.
    hosts: hosts that decode the media.
    split: split as TensorFlow Datasets writes it: 'test', 'train[90%:]'.

  Raises:
    UserError: if the set, the split or a feature is unknown, or something is missing
      that is needed to get the set.
  """
  if not config.name:
    raise UserError(
      "config.data.source='tfds' reads a set by its name: --config.data.name=mnist"
    )
  tfds = _library()
  builder = _prepared_builder(tfds, config)
  features = builder.info.features
  fields: dict[str, Field] = {}
  for name in sorted(features):
    field = _field(tfds, name, features[name], config)
    if field is not None:
      fields[name] = field
  read, write = _question_and_answer(config, fields, builder.info.supervised_keys)
  for field in (read, write):
    if field.kind == 'audio' and not _rate(features[field.name], config):
      raise UserError(
        f'{config.name}: feature {field.name!r} does not state its sample rate: set '
        'it, for example --config.data.rate=16000'
      )
  source = _open_split(tfds, builder, fields.values(), config, split)
  return TfdsExamples(
    f'{config.name}/{split}', source, read, write, hosts, config.language
  )


def _open_split(
  tfds: Any, builder: Any, fields: Iterable[Field], config: Any, split: str
) -> Sequence[Mapping[str, Any]]:
  """Returns the records of a split, with media as they are stored.

  The media's hosts decode them, with their limits and to the run's size.
  """
  undecoded = {}
  for field in fields:
    if field.kind != 'text':
      undecoded[field.name] = tfds.decode.SkipDecoding()
  try:
    return builder.as_data_source(split=split, decoders=undecoded)
  except NotImplementedError as error:
    raise UserError(
      f'{builder.data_dir} holds no ArrayRecord files: prepare the set in another '
      '--config.data.root'
    ) from error
  except (KeyError, ValueError) as error:
    splits = ', '.join(sorted(builder.info.splits))
    raise UserError(
      f'{config.name}: no split {split!r}; there are {splits}, and parts of them such '
      "as 'train[90%:]'"
    ) from error


def _library() -> Any:
  try:
    import tensorflow_datasets  # takes seconds, and is an optional package
  except ImportError as error:
    raise UserError(
      f"config.data.source='tfds' needs the package {error.name!r}: "
      "pip install 'omni_jax[tf]'"
    ) from error
  return tensorflow_datasets


def _prepared_builder(tfds: Any, config: Any) -> Any:
  """Returns the builder of a set whose files are there.

  Raises:
    UserError: if there is no such set, or it cannot be prepared.
  """
  root = config.root or '~/tensorflow_datasets'
  try:
    builder = tfds.builder(
      config.name, data_dir=config.root or None, file_format='array_record'
    )
    if not builder.is_prepared():
      # The code of every set needs it: an error now is better than after the download.
      import tensorflow  # noqa: F401

      builder.download_and_prepare()
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(
      f'config.data.name={config.name!r}: neither TensorFlow Datasets nor {root} has a '
      'set of this name; see https://www.tensorflow.org/datasets/catalog'
    ) from error
  except ImportError as error:
    raise UserError(
      f'{config.name} cannot be prepared or opened without TensorFlow: '
      "pip install 'omni_jax[tf]'"
    ) from error
  except Exception as error:
    # The code of a set may fail for any reason: network, disk, an archive that changed.
    raise UserError(
      f'{config.name} cannot be prepared in {root} ({_first_line(error)}): this needs '
      'a network; or prepare it where there is one, copy its folder and name the copy '
      'with --config.data.root'
    ) from error
  return builder


def _field(tfds: Any, name: str, feature: Any, config: Any) -> Field | None:
  """Returns the field of a feature; None if it is neither text nor a medium."""
  kinds = tfds.features
  if isinstance(feature, kinds.Image):
    return Field(name, 'image', _image_part)
  is_tensor = type(feature) is kinds.Tensor
  is_wave = is_tensor and tuple(feature.shape) == (None,)
  if is_wave or isinstance(feature, kinds.Audio):
    rate = _rate(feature, config)
    return Field(name, 'audio', functools.partial(_audio_part, rate=rate))
  if isinstance(feature, kinds.ClassLabel):
    return Field(name, 'text', functools.partial(_label_part, feature=feature))
  if isinstance(feature, kinds.Text):
    return Field(name, 'text', _text_part)
  return None


def _image_part(data: Any) -> dict[str, Any]:
  return {'type': 'image', 'data': data}


def _audio_part(data: Any, *, rate: int) -> dict[str, Any]:
  return {'type': 'audio', 'data': _sound(data, rate)}


def _label_part(number: Any, *, feature: Any) -> dict[str, Any]:
  return text_part(feature.int2str(int(number)))


def _text_part(text: Any) -> dict[str, Any]:
  return text_part(_text(text))


def _question_and_answer(
  config: Any, fields: Mapping[str, Field], supervised: Any
) -> tuple[Field, Field]:
  """Returns the fields of prompt and answer.

  They are those that the config names, or else the supervised keys of the set, or else
  its only medium and its only text.
  """
  kinds = {name: field.kind for name, field in fields.items()}
  read, write = infer_columns(kinds)
  is_pair = isinstance(supervised, tuple) and len(supervised) == 2
  if is_pair and set(supervised) <= fields.keys():
    read, write = supervised
  read = config.read or read
  write = config.write or write
  if not {read, write} <= fields.keys():
    known = ', '.join(f'{name} ({kind})' for name, kind in kinds.items())
    raise UserError(
      f'{config.name} has {known or "nothing that can be used"}: name the prompt by '
      '--config.data.read and the answer by --config.data.write (now '
      f'{read!r} and {write!r})'
    )
  return fields[read], fields[write]


def _rate(feature: Any, config: Any) -> int:
  """Returns the samples per second that the feature or the config gives, else 0."""
  return getattr(feature, 'sample_rate', None) or config.rate


def _sound(data: Any, rate: int) -> bytes:
  """Returns a WAV file of samples; bytes of a file stay as they are.

  Args:
    data: 16-bit integers or floats in [-1, 1], shape (samples,) or (samples, channels).
    rate: samples per second.

  Raises:
    BadRecord: if the samples are out of range.
  """
  if isinstance(data, bytes):
    return data
  samples = np.asarray(data)
  wave = samples
  if samples.ndim == 2:
    wave = wave.mean(axis=1, dtype=np.float64)
  if np.issubdtype(samples.dtype, np.integer):
    wave = wave / FULL_SCALE
  finite = np.isfinite(wave).all()
  peak = np.abs(wave).max(initial=0)
  if not finite or peak > 1:
    raise BadRecord('sound of samples that are neither 16-bit nor between -1 and 1')
  return wav_bytes(wave, rate)


def _text(text: str | bytes) -> str:
  if not isinstance(text, bytes):
    return str(text)
  try:
    return text.decode()
  except UnicodeDecodeError as error:
    raise BadRecord(f'text is not UTF-8 at byte {error.start}') from error


def _first_line(error: BaseException) -> str:
  """Returns the type of an error and the first line of its message."""
  lines = str(error).strip().splitlines()
  first = lines[0][:200] if lines else ''
  return f'{type(error).__name__}: {first}'
