"""Writes the manifest of a converted folder, and checks folders against it."""

import collections
from collections.abc import Iterable, Mapping, Sequence
import glob
import json
import os
import pathlib
from typing import Any, NamedTuple

from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.retry import with_retries

SCHEMA = 1  # version of the form of a record
MANIFEST = 'manifest.json'
REFUSED = 'refused.jsonl'
SHARD_SUFFIX = '.array_record'  # of shards
MAX_LISTED = 3  # names or reasons that a message lists


class ShardStats(NamedTuple):
  """Facts about one shard of a conversion.

  Attributes:
    file: file name.
    records: number of records.
    bytes: size of the file.
    sha256: digest of the file, in hexadecimal.
    media: amounts of media, by name.
    refused: (id, reason) of each example that was left out.
  """

  file: str
  records: int
  bytes: int
  sha256: str
  media: dict[str, float]
  refused: list[tuple[str, str]]


def manifest_of(
  stats: Sequence[ShardStats],
  source: str,
  tokenizer: str | None,
  codecs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Returns the content of manifest.json.

  Args:
    stats: facts about all shards, in any order; a shard without records has no file and
      is not listed.
    source: name of the input.
    tokenizer: fingerprint of the tokenizer that every record was checked against, or
      None.
    codecs: fingerprints of the autoencoders whose codes are stored beside the media, by
      name.
  """
  stats = sorted(stats, key=lambda shard: shard.file)
  reasons: collections.Counter[str] = collections.Counter()
  shards = []
  for shard in stats:
    reasons.update(reason for _, reason in shard.refused)
    if shard.records:
      entry = {
        'file': shard.file,
        'records': shard.records,
        'bytes': shard.bytes,
        'sha256': shard.sha256,
      }
      shards.append(entry)
  return {
    'schema': SCHEMA,
    'input': source,
    'tokenizer': tokenizer,
    'codecs': dict(codecs or {}),
    'records': sum(shard.records for shard in stats),
    'media': sum_counts(shard.media for shard in stats),
    'refused': dict(reasons.most_common()),
    'shards': shards,
  }


def sum_counts(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
  """Returns the sums of counts by name."""
  sums: dict[str, float] = {}
  for count in counts:
    for name, value in count.items():
      sums[name] = sums.get(name, 0) + value
  return sums


def summary_files(
  manifest: dict[str, Any], stats: Sequence[ShardStats]
) -> dict[str, str]:
  """Returns the text of the two files that lie beside the shards, by file name."""
  refused: list[tuple[str, str]] = []
  for shard in stats:
    refused += shard.refused
  lines = []
  for id, reason in sorted(refused):
    lines.append(json.dumps({'id': id, 'reason': reason}) + '\n')
  text = json.dumps(manifest, indent=1) + '\n'
  return {REFUSED: ''.join(lines), MANIFEST: text}


def check_not_empty(manifest: dict[str, Any]) -> None:
  """Raises UserError if no record could be used."""
  if manifest['records']:
    return
  most_common = list(manifest['refused'].items())[:MAX_LISTED]
  reasons = '; '.join(f'{count} x {reason}' for reason, count in most_common)
  if not reasons:
    raise UserError(f'{manifest["input"]} holds no examples')
  raise UserError(f'no example of {manifest["input"]} can be used: {reasons}')


def shards_in(folder: str) -> list[str]:
  """Returns the paths of the shards of a folder, in order; [] if there are none.

  Sizes are compared with the manifest; digests are not, since that would read
  everything. A folder without a manifest is accepted without a check.

  Raises:
    UserError: if the manifest has another schema, or if shards are missing, extra or of
      another size.
  """
  sizes: dict[str, int] = {}
  for path in glob.glob(f'{glob.escape(folder)}/*{SHARD_SUFFIX}'):
    sizes[os.path.basename(path)] = os.path.getsize(path)
  manifest = _read(folder)
  if manifest is not None:
    _check_sizes(folder, sizes, manifest)
  return [os.path.join(folder, name) for name in sorted(sizes)]


def _check_sizes(
  folder: str, sizes: Mapping[str, int], manifest: Mapping[str, Any]
) -> None:
  """Raises UserError unless the names and sizes of the shards match the manifest."""
  expected = _sizes_of(manifest)
  changed = []
  for name in sorted(expected.keys() & sizes.keys()):
    if sizes[name] != expected[name]:
      changed.append(f'{name} has {sizes[name]:,} bytes, not {expected[name]:,}')
  differences = {
    'missing': sorted(expected.keys() - sizes.keys()),
    'not in the manifest': sorted(sizes.keys() - expected.keys()),
    'of another size': changed,
  }
  problems = []
  for kind, names in differences.items():
    if names:
      problems.append(f'{kind}: {_shortened_list(names)}')
  if problems:
    raise UserError(
      f'{folder}: the shards do not match {MANIFEST} ({"; ".join(problems)}): copy the '
      'folder again, or convert the data again'
    )


def check_tokenizer(folder: str, tokenizer: Tokenizer) -> None:
  """Raises UserError if the folder was converted for another tokenizer.

  A folder that was converted for no particular tokenizer fits every run.
  """
  manifest = _read(folder) or {}
  converted_for = manifest.get('tokenizer')
  expected = tokenizer.fingerprint()
  if converted_for not in (None, expected):
    raise UserError(
      f'{folder} was converted for the tokenizer {converted_for}, but this run uses '
      f'{expected}: convert the data again with the --config of this run, or train '
      'with the config.model.tokenizer of the conversion'
    )


def check_codecs(folder: str, fingerprints: Mapping[str, str]) -> None:
  """Refuses a folder whose codes were made by other autoencoders than this run's.

  Args:
    folder: folder that was converted with codes.
    fingerprints: those of this run's autoencoders, by name.

  Raises:
    UserError: if a fingerprint differs from the manifest's, or is not in it.
  """
  manifest = _read(folder) or {}
  stored = manifest.get('codecs') or {}
  for name, expected in fingerprints.items():
    if name not in stored:
      raise UserError(
        f'{folder} holds no codes of a {name}: convert the data again with --codes=RUN '
        f"of this run's {name}, or use config.data.codes='computed'"
      )
    if stored[name] != expected:
      raise UserError(
        f'{folder} holds codes of the {name} {stored[name]}, but this run uses '
        f"{expected}: convert the data again with --codes=RUN of this run's {name}, "
        f'set config.{name}.init_from to the run that made the codes, or use '
        "config.data.codes='computed'"
      )


def _read(folder: str) -> dict[str, Any] | None:
  """Returns the manifest, or None if there is none.

  Raises:
    UserError: if it cannot be used or has another schema.
  """
  path = os.path.join(folder, MANIFEST)
  if not os.path.isfile(path):
    return None
  try:
    manifest = json.loads(with_retries(pathlib.Path(path).read_bytes, path))
    schema = manifest['schema']
    if schema == SCHEMA:
      _sizes_of(manifest)  # raises if a shard has no file or size
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path} is not the manifest of a conversion ({type(error).__name__}: {error}): '
      'convert the data again'
    ) from error
  if schema != SCHEMA:
    raise UserError(
      f'{path} has schema {schema!r}, but this version reads {SCHEMA}: convert the '
      'data again with this version'
    )
  return manifest


def _sizes_of(manifest: Mapping[str, Any]) -> dict[str, int]:
  """Returns the sizes in bytes that the manifest gives, by file name."""
  return {shard['file']: shard['bytes'] for shard in manifest['shards']}


def _shortened_list(names: Sequence[str]) -> str:
  """Returns the first names, and how many more there are."""
  text = ', '.join(names[:MAX_LISTED])
  more = len(names) - MAX_LISTED
  return f'{text} and {more} more' if more > 0 else text
