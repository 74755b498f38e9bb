"""python -m omni_jax.convert --input=… --output=DIR: own data -> ArrayRecord shards and a manifest.

  --input=data/train.jsonl       JSON lines with media beside them
  --input=pictures/              a folder of pictures or sounds; folders in it are labels, NAME.txt is a caption
  --input='shards/*.tar'         samples in tar files (WebDataset)
  --input='part-*.parquet'       columns --read and --write
  --input=tfds:mnist/train       a set of TensorFlow Datasets; --root is its folder
  --input=seqio:my_task/train    a SeqIO task; --module is imported first
  --input=emoji:train            a ready set (docs/ready_sources.md); --root is the folder that holds its folder

The output appears when it is whole; the same command goes on where a killed one stopped. It does not depend on the
number of workers.

--beam='--runner=FlinkRunner --parallelism=8' runs the same as a pipeline of Apache Beam, on a cluster or a service: the
options are Beam's. Input and output must be where all workers see them; the output may lie in a bucket.

With --config=FILE [--config.name=value …] an example that this run could not take is refused: one that no row can hold,
or that names a language, a voice or a task without a token. The manifest then says which tokenizer that was.

--codes=RUN stores beside every sound what the autoencoder of that run makes of it, for config.data.codes='stored'.
Without --config the run is RUN.
"""

import argparse
from collections.abc import Sequence
import os
import pathlib
import sys

from absl import flags as absl_flags
from absl import logging
from ml_collections import config_flags

from omni_jax.config import read_config
from omni_jax.convert import beam
from omni_jax.convert.inputs import reader_of, READERS
from omni_jax.convert.local import convert
from omni_jax.convert.run_check import RunCheck
from omni_jax.errors import run_command, UserError
from omni_jax.sequence.media import is_remote


def _run_check(arguments: Sequence[str]) -> RunCheck | None:
  """Of --config and its overrides; their reading is that of training, and loads no jax."""
  if not arguments:
    return None
  if not arguments[0].startswith('--config=') or arguments[0] == '--config=':
    raise UserError(f'{arguments[0]}: give --config=FILE before what overrides it')
  argv, values = ['convert', *arguments], absl_flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values, sys_argv=argv
  )
  return RunCheck.of(read_config(values, argv))


def _coded(folder: str, check: RunCheck | None) -> RunCheck:
  """Returns the check with the autoencoders of a run's folder; only here jax is loaded."""
  os.environ.setdefault(
    'JAX_PLATFORMS', 'cpu'
  )  # workers side by side would contend for an accelerator
  from omni_jax.checkpoint.saved_config import saved_config
  from omni_jax.convert.codes import coders_of

  logging.set_verbosity(logging.ERROR)  # Orbax reports every folder that it opens
  config = saved_config(folder)
  check = check or RunCheck.of(config)
  coders = coders_of(folder, config)
  for medium, coder in coders.items():
    ours = check.hosts[medium].config
    theirs = coder.host.config
    if not check.hosts[medium].same_pieces(theirs):
      raise UserError(
        f'--codes={folder} has a {coder.name} of pieces as {theirs}, --config has {ours}'
      )
  return check._replace(coders=coders)


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """The flags, and the words that give a run's config."""
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.convert',
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--input', required=True)
  parser.add_argument('--output', required=True, help='folder to make')
  parser.add_argument(
    '--kind', choices=list(READERS), help='of the input, where its name does not say'
  )
  parser.add_argument(
    '--shards',
    type=int,
    default=16,
    help='each is sorted in memory by --beam: take more there',
  )
  parser.add_argument('--workers', type=int, default=os.cpu_count())
  parser.add_argument(
    '--timeout',
    type=float,
    default=600,
    help='seconds after which hanging workers are given up',
  )
  parser.add_argument(
    '--codes', help='folder of a run whose autoencoders code the media'
  )
  parser.add_argument(
    '--beam', help='options of a pipeline of Apache Beam, in one word'
  )
  for name, text in dict(
    read='column that the user shows',
    write='column that the assistant answers with',
    language='of the answers',
    root='folder of a TFDS set or of the ready sets',
    module='imported first, for SeqIO',
  ).items():
    parser.add_argument(f'--{name}', default='', help=text)
  parser.add_argument(
    '--rate', type=int, default=0, help='of sounds whose TFDS feature does not say'
  )
  flags, rest = parser.parse_known_args(arguments)
  if strange := [
    word for word in rest if not word.startswith(('--config=', '--config.'))
  ]:
    parser.error(f'unrecognized arguments: {" ".join(strange)}')
  if flags.shards < 1 or flags.workers < 1 or flags.timeout <= 0:
    raise UserError(
      f'--shards={flags.shards} --workers={flags.workers} --timeout={flags.timeout}: each is above 0'
    )
  return flags, rest


def _counts(media: dict[str, float]) -> str:
  """Returns what was counted of the media, in words."""
  return (
    ', '.join(f'{value:,.10g} {name}' for name, value in media.items()) or 'no media'
  )


def main(arguments: Sequence[str]) -> None:
  flags, rest = parse(arguments)
  check = _run_check(rest)
  if flags.codes is not None:
    check = _coded(flags.codes, check)
  if flags.beam is not None:
    made = beam.convert(
      reader_of(flags),
      flags.output,
      shards=flags.shards,
      said=flags.input,
      options=flags.beam,
      check=check,
    )
  elif is_remote(flags.output):
    raise UserError(
      f'--output={flags.output}: only --beam writes to a bucket; name a folder here and copy it'
    )
  else:
    made = convert(
      reader_of(flags),
      pathlib.Path(flags.output),
      shards=flags.shards,
      workers=flags.workers,
      said=flags.input,
      timeout=flags.timeout,
      check=check,
    )
  refused = sum(made['refused'].values())
  print(
    f'convert: wrote {flags.output}: {made["records"]} records in {len(made["shards"])} shards, '
    f'{_counts(made["media"])}; {refused} refused'
    + (f', see {flags.output}/refused.jsonl' if refused else '')
  )


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
