"""python -m omni_jax.convert --input=… --output=DIR: your data -> ArrayRecord shards.

  --input=data/train.jsonl       JSON lines with media files beside them
  --input=pictures/              pictures or sounds, with labels (the folders in it)
                                 or captions (NAME.txt)
  --input='shards/*.tar'         samples in tar files (WebDataset)
  --input='part-*.parquet'       columns --read and --write
  --input=tfds:mnist/train       a set of TensorFlow Datasets; --root is its folder
  --input=seqio:my_task/train    a SeqIO task; --module is imported first
  --input=emoji:train            a ready set (docs/ready_sources.md); --root is the
                                 folder that holds the folder of the set

The output, shards and a manifest, appears only when it is complete; run the same
command again to resume a conversion that was killed. The output does not depend on the
number of workers.

--beam='--runner=FlinkRunner --parallelism=8' runs the conversion as a pipeline of
Apache Beam, on a cluster or a service; the options are Beam's. All workers must see the
input and the output; the output may be in a bucket.

With --config=FILE [--config.name=value …] every example that this run could not take is
refused: one that fits no row, or that names a language, a voice or a task without a
token. The manifest then records the fingerprint of the run's tokenizer.

--codes=RUN stores with every medium the codes of that run's autoencoder, for
config.data.codes='stored'. Without --config, examples are checked against RUN.
"""

import argparse
from collections.abc import Mapping, Sequence
import os
import pathlib
import sys
from typing import Any

from absl import flags as absl_flags
from absl import logging
from ml_collections import config_flags

from omni_jax.config import read_config
from omni_jax.convert import beam
from omni_jax.convert.bucket import check_is_new, staging_folder, upload
from omni_jax.convert.inputs import reader_of, READERS
from omni_jax.convert.local import convert
from omni_jax.convert.run_check import RunCheck
from omni_jax.data.sources.shards import REFUSED
from omni_jax.errors import run_command, UserError
from omni_jax.paths import checked, is_remote

# Flags whose value is a text, '' by default, and their help.
TEXT_FLAGS = {
  'read': 'column that the user shows',
  'write': 'column that the assistant answers with',
  'language': 'language of the answers',
  'root': 'folder of a TFDS set or of the ready sets',
  'module': 'module to import first, for SeqIO',
}


def _run_check(arguments: Sequence[str]) -> RunCheck | None:
  """Returns the check of --config and its overrides, or None without arguments.

  They are read as in training, but without loading jax.
  """
  if not arguments:
    return None
  if not arguments[0].startswith('--config=') or arguments[0] == '--config=':
    raise UserError(f'{arguments[0]}: give --config=FILE before its overrides')
  argv = ['convert', *arguments]
  values = absl_flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values, sys_argv=argv
  )
  return RunCheck.of(read_config(values, argv))


def _with_coders(check: RunCheck | None, folder: str) -> RunCheck:
  """Returns the check with the autoencoders of a run; loads jax, on the CPU.

  Args:
    check: None for the check of that run itself.
    folder: folder of the run.
  """
  # Workers in parallel would compete for an accelerator.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from omni_jax.checkpoint.saved_config import saved_config
  from omni_jax.convert.codes import coders_of

  logging.set_verbosity(logging.ERROR)  # Orbax reports every folder that it opens
  config = saved_config(folder)
  if check is None:
    check = RunCheck.of(config)
  coders = coders_of(folder, config)
  for medium, coder in coders.items():
    host = check.hosts[medium]
    sizes = coder.host.config
    if not host.same_pieces(sizes):
      raise UserError(
        f'--codes={folder} has a {coder.name} for pieces of {sizes}, but --config has '
        f'{host.config}'
      )
  return check._replace(coders=coders)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags, and the arguments that give the config of a run."""
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.convert',
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--input', required=True)
  parser.add_argument('--output', required=True, help='folder to create')
  parser.add_argument(
    '--kind',
    choices=list(READERS),
    help='kind of the input, if its name leaves that open',
  )
  parser.add_argument(
    '--shards',
    type=int,
    default=16,
    help='number of output files; --beam sorts each in memory: give more there',
  )
  parser.add_argument(
    '--workers', type=int, default=os.cpu_count(), help='number of processes'
  )
  parser.add_argument(
    '--timeout',
    type=float,
    default=600,
    help='seconds after which workers without a result are given up',
  )
  parser.add_argument(
    '--codes', help='folder of a run whose autoencoders code the media'
  )
  parser.add_argument(
    '--beam', help='options of an Apache Beam pipeline, as one argument'
  )
  for name, text in TEXT_FLAGS.items():
    parser.add_argument(f'--{name}', default='', help=text)
  parser.add_argument(
    '--rate',
    type=int,
    default=0,
    help='samples per second of sounds whose TFDS feature does not give them',
  )
  flags, rest = parser.parse_known_args(arguments)
  unknown = [word for word in rest if not word.startswith(('--config=', '--config.'))]
  if unknown:
    parser.error(f'unrecognized arguments: {" ".join(unknown)}')
  if flags.shards < 1 or flags.workers < 1 or flags.timeout <= 0:
    raise UserError(
      f'--shards={flags.shards} --workers={flags.workers} --timeout={flags.timeout}: '
      'each must be above 0'
    )
  return flags, rest


def _in_words(counts: Mapping[str, float]) -> str:
  """Returns the amounts of media in words."""
  amounts = [f'{count:,.10g} {name}' for name, count in counts.items()]
  return ', '.join(amounts) or 'no media'


def _convert(flags: argparse.Namespace, check: RunCheck | None) -> dict[str, Any]:
  """Runs the conversion and returns its manifest."""
  if flags.beam is not None:
    return beam.convert(
      reader_of(flags),
      flags.output,
      shards=flags.shards,
      input_name=flags.input,
      options=flags.beam,
      check=check,
    )
  output = checked(flags.output, '--output')
  folder = pathlib.Path(output)
  if is_remote(output):
    check_is_new(output)
    folder = staging_folder(output)
  manifest = convert(
    reader_of(flags),
    folder,
    shards=flags.shards,
    workers=flags.workers,
    input_name=flags.input,
    timeout=flags.timeout,
    check=check,
  )
  if is_remote(output):
    upload(folder, output)
  return manifest


def main(arguments: Sequence[str]) -> None:
  """Runs the command with its arguments, without the name of the program."""
  flags, rest = parse(arguments)
  check = _run_check(rest)
  if flags.codes is not None:
    check = _with_coders(check, flags.codes)
  manifest = _convert(flags, check)
  records = manifest['records']
  shards = len(manifest['shards'])
  media = _in_words(manifest['media'])
  refused = sum(manifest['refused'].values())
  summary = (
    f'convert: wrote {flags.output}: {records} records in {shards} shards, '
    f'{media}; {refused} refused'
  )
  if refused:
    summary += f', see {flags.output}/{REFUSED}'
  print(summary)


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
