"""The manifest of a converted folder: what is in it, and for which tokenizer; checked when a run opens the folder."""

import collections
from collections.abc import Iterable, Mapping, Sequence
import glob
import json
import os
import pathlib
from typing import Any, NamedTuple

from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.retry import patiently

SCHEMA = 1  # of a record
MANIFEST, REFUSED = 'manifest.json', 'refused.jsonl'


class ShardStats(NamedTuple):
  file: str
  records: int
  bytes: int
  sha256: str
  counted: dict[str, float]  # of the media, by what is counted
  refused: list[tuple[str, str]]  # id and reason


def manifest_of(
  stats: Sequence[ShardStats],
  said: str,
  tokenizer: str | None,
  codecs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """What is written as manifest.json.

  Args:
    stats: of all shards, in any order; a shard without records has no file and is not listed.
    said: what the input is.
    tokenizer: fingerprint of the tokenizer that every record was checked against, or None.
    codecs: fingerprints of the autoencoders whose codes stand beside the media, by name.
  """
  stats = sorted(stats, key=lambda shard: shard.file)
  reasons = collections.Counter(why for shard in stats for _, why in shard.refused)
  return {
    'schema': SCHEMA,
    'input': said,
    'tokenizer': tokenizer,
    'codecs': dict(codecs or {}),
    'records': sum(shard.records for shard in stats),
    'media': added(shard.counted for shard in stats),
    'refused': dict(reasons.most_common()),
    'shards': [
      {
        'file': shard.file,
        'records': shard.records,
        'bytes': shard.bytes,
        'sha256': shard.sha256,
      }
      for shard in stats
      if shard.records
    ],
  }


def added(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
  """Returns the sums of counts by name."""
  sums: dict[str, float] = {}
  for count in counts:
    for name, value in count.items():
      sums[name] = sums.get(name, 0) + value
  return sums


def lists_of(manifest: dict[str, Any], stats: Sequence[ShardStats]) -> dict[str, str]:
  """The text of the two files that lie beside the shards, by name."""
  refused = sorted(pair for shard in stats for pair in shard.refused)
  return {
    REFUSED: ''.join(
      json.dumps({'id': id, 'reason': why}) + '\n' for id, why in refused
    ),
    MANIFEST: json.dumps(manifest, indent=1) + '\n',
  }


def check_useful(manifest: dict[str, Any]) -> None:
  """Raises UserError where no record was good."""
  if not manifest['records']:
    reasons = '; '.join(
      f'{n} x {reason}' for reason, n in list(manifest['refused'].items())[:3]
    )
    raise UserError(
      f'{manifest["input"]}: no example can be used: {reasons or "there is none"}'
    )


def shards_in(folder: str) -> list[str]:
  """Paths of the shards of a folder, in order; none where it is no such folder.

  Sizes are compared with the manifest, digests are not: that would read everything. A folder without a manifest was
  put together by hand, and is taken as it is.

  Raises:
    UserError: if the manifest is of another version, or if shards are missing, extra or of another size.
  """
  sizes = {
    os.path.basename(path): os.path.getsize(path)
    for path in glob.glob(f'{glob.escape(folder)}/*.array_record')
  }
  manifest = _read(folder)
  if manifest is not None:
    told = {shard['file']: shard['bytes'] for shard in manifest['shards']}
    missing, extra = (
      sorted(told.keys() - sizes.keys()),
      sorted(sizes.keys() - told.keys()),
    )
    other = [
      f'{name} has {sizes[name]:,} bytes, not {told[name]:,}'
      for name in sorted(told.keys() & sizes.keys())
      if sizes[name] != told[name]
    ]
    if problems := [
      f'{what}: {_some(names)}'
      for what, names in (
        ('missing', missing),
        ('not in the manifest', extra),
        ('of another size', other),
      )
      if names
    ]:
      raise UserError(
        f'{folder}: the shards are not those of {MANIFEST} ({"; ".join(problems)}): copy the folder '
        'again, or convert again'
      )
  return [os.path.join(folder, name) for name in sorted(sizes)]


def check_tokenizer(folder: str, tokenizer: Tokenizer) -> None:
  """Raises UserError where the folder was converted for another tokenizer; says nothing where for no one's."""
  theirs, ours = (_read(folder) or {}).get('tokenizer'), tokenizer.fingerprint()
  if theirs not in (None, ours):
    raise UserError(
      f'{folder} was converted for the tokenizer {theirs}, this run has {ours}: convert again with the '
      '--config of this run, or train with the config.model.tokenizer of the conversion'
    )


def check_codecs(folder: str, ours: Mapping[str, str]) -> None:
  """Refuses a folder whose codes are not those of this run's autoencoders.

  Args:
    ours: fingerprints by name of the autoencoder.
  """
  theirs = (_read(folder) or {}).get('codecs') or {}
  for name, fingerprint in ours.items():
    if theirs.get(name) != fingerprint:
      raise UserError(
        f'{folder} holds codes of the {name} {theirs.get(name)}, this run has {fingerprint}: convert again with '
        f"--codes=RUN of this run's {name}, set config.{name}.init_from to the run that made the codes, or take "
        "config.data.codes='computed'"
      )


def _read(folder: str) -> dict[str, Any] | None:
  """The manifest, as far as it is used here; None where there is none."""
  path = os.path.join(folder, MANIFEST)
  if not os.path.isfile(path):
    return None
  try:
    manifest = json.loads(patiently(pathlib.Path(path).read_bytes, path))
    schema = manifest['schema']
    if schema == SCHEMA:
      dict((shard['file'], shard['bytes']) for shard in manifest['shards'])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path}: is not the manifest of a conversion ({type(error).__name__}: {error}): convert again'
    ) from error
  if schema != SCHEMA:
    raise UserError(
      f'{path}: has schema {schema!r}, this version reads {SCHEMA}: convert again with it'
    )
  return manifest


def _some(names: Sequence[str]) -> str:
  return ', '.join(names[:3]) + (
    f' and {len(names) - 3} more' if len(names) > 3 else ''
  )
