"""The stages of a run: codec -> omni -> evaluate; each is resumable and does nothing when it is already done."""

import contextlib
import functools
import gc
import json
import re
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict
import optax

from omni_jax import sharding
from omni_jax.checkpoint import changes
from omni_jax.checkpoint.checkpoint import has_checkpoint, last_about
from omni_jax.checkpoint.claim import claimed
from omni_jax.checkpoint.init_from import fresh_names, start_from
from omni_jax.chips import peak_flops
from omni_jax.config import dataclass_of
from omni_jax.data.crops import ClipLoader
from omni_jax.data.loader import lanes_of, Loader, LoaderConfig
from omni_jax.data.making import Making
from omni_jax.data.sources.shards import check_codec
from omni_jax.data.sources.table import (
  check_tokenizers,
  converted_folders,
  source_of,
  training_examples,
  training_payloads,
)
from omni_jax.errors import UserError
from omni_jax.modalities.audio.embed import Hearing
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.sequence.augment import Augment
from omni_jax.train import loop, processes
from omni_jax.train import state as states
from omni_jax.train.coder import fingerprint, restore_values
from omni_jax.train.flops import step_flops
from omni_jax.train.optim import make_optimizer, OptimConfig
from omni_jax.train.plan import omni_program, Plan
from omni_jax.train.step import make_codec_step
from omni_jax.train.writer import say


class Run(Plan):
  """What all stages share: the plan, where it runs, and this process's part of the rows."""

  def __init__(self, config: Any, workdir: str):
    """Checks what can be checked before anything is written."""
    super().__init__(config)
    self.workdir = workdir
    self.augment = (
      dataclass_of(Augment, config.data.augment, 'data.augment')
      if config.data.get('augment')
      else None
    )
    self.loader = dataclass_of(
      LoaderConfig, config.get('loader') or ConfigDict(), 'loader'
    )
    self.part = sharding.input_part(self.mesh)
    lanes_of(self.budget.rows, self.loader, self.part[1])
    source_of(config.data)  # an unknown one is refused here
    check_tokenizers(config.data, Tokenizer(self.omni.tokenizer))
    if config.profile and not re.fullmatch(r'\d+:\d+', config.profile):
      raise UserError(
        f"config.profile={config.profile!r}: give the first and the last step, such as '10:15'"
      )
    self.codec_from = config.codec.get('init_from')
    if self.codec_from:
      said = f'config.codec.init_from={self.codec_from}'
      if 'codec' in config.stages:
        raise UserError(
          f"{said} takes a finished codec: take 'codec' out of config.stages"
        )
      if not has_checkpoint(self.codec_from, 'codec'):
        raise UserError(f"{said}: no checkpoint of stage 'codec' there")
    self.own_codec = bool(
      'codec' in config.stages or not self.budget.spoken_frames or self.codec_from
    )
    self._check_codes()
    self.starts = bool(config.init_from) and not has_checkpoint(workdir, 'omni')
    if self.starts:
      fresh_names(config.init_from, self._shapes(), own_codec=self.own_codec)

  def _check_codes(self) -> None:
    """Codes that were stored are of use to a run that has the codec that made them."""
    if not self.stored_codes:
      return
    said, hears = (
      "config.data.codes='stored'",
      self.omni.audio_embed.hearing == Hearing.CODES,
    )
    of_another = self.config.init_from and not self.own_codec
    if not self.codec_from and (
      of_another or not has_checkpoint(self.workdir, 'codec')
    ):
      raise UserError(
        f'{said}: this run has not got the codec that made them; set config.codec.init_from to the run '
        "that has, and take 'codec' out of config.stages"
      )
    if hears and self.augment:
      raise UserError(
        f'{said}: what is heard was coded as it was recorded, so that config.data.augment cannot change '
        "it: take config.data.augment out of the config, or config.data.codes='computed'"
      )

  def _shapes(self) -> states.TrainState:
    """Of the omni stage's state."""

    def init():
      tx = make_optimizer(OptimConfig(), 1)
      return states.init_omni(
        self.omni,
        tx,
        states.codec_values(states.init_codec(self.omni, tx, seed=0)),
        seed=0,
      )

    return jax.eval_shape(init)


def _stage(run: Run, name: str, **parts: Any) -> loop.Stage:
  part = run.config[name]
  return loop.Stage(
    name,
    part.steps,
    log_every=part.log_every,
    save_every=part.save_every,
    bad_steps=part.get('bad_steps', 0),
    repeat_every=run.config.get('repeat_every', 0),
    about={'config': changes.plain(run.config)},
    **parts,
  )


def _codec_stage(run: Run) -> loop.Stage:
  part, codec = run.config.codec, run.abstract_codec()
  tx = make_optimizer(run.optim['codec'], part.steps)
  whole = sharding.replicated(run.mesh)
  init = jax.jit(
    lambda: states.init_codec(run.omni, tx, seed=run.config.seed), out_shardings=whole
  )
  batches = ClipLoader(
    training_payloads(run.config.data, run.omni.media, 'audio'),
    run.omni.media.audio,
    batch=part.batch,
    frames=part.frames,
    seed=run.config.seed,
    shard=run.part,
  )
  step = jax.jit(make_codec_step(codec, tx), donate_argnums=0)
  return _stage(run, 'codec', step=step, state=init(), batches=batches)


def train_codec(run: Run) -> None:
  """Stage 1: the speech codec on its own, on clips."""
  with jax.set_mesh(run.mesh):
    loop.run(_codec_stage(run), run.workdir, run.mesh)


def restore_codec(run: Run) -> Any:
  """Parameters and codebooks of the finished codec stage, this run's or that of config.codec.init_from.

  Fresh ones where they are replaced or nothing is spoken.
  """
  if (
    'codec' not in run.config.stages
    and not run.codec_from
    and (run.config.init_from or not run.budget.spoken_frames)
  ):
    tx = make_optimizer(OptimConfig(), 1)
    init = jax.jit(
      lambda: states.init_codec(run.omni, tx, seed=0),
      out_shardings=sharding.replicated(run.mesh),
    )
    return states.codec_values(init())
  values, step = restore_values(
    run.codec_from or run.workdir, run.omni, sharding.replicated(run.mesh)
  )
  if not run.codec_from and step < run.config.codec.steps:
    raise UserError(
      f'the codec stage stands at step {step} of {run.config.codec.steps}; finish it first: '
      f"config.stages must hold 'codec' before 'omni'"
    )
  return values


def making_of(run: Run) -> Making:
  """What the batches of the omni stage are made of."""
  return Making(
    training_examples(run.config.data, run.media),
    Tokenizer(run.omni.tokenizer),
    run.media,
    run.config.seed,
    run.augment,
  )


def omni_batches(run: Run) -> Loader:
  """The batches of the omni stage, from its first."""
  return Loader(making_of(run), run.budget, run.loader, shard=run.part)


def omni_stage(
  run: Run, codec_values: Any, rate: optax.Schedule | None = None
) -> loop.Stage:
  """Stage 2 with a fresh state: the whole model on every modality, the codec frozen inside its step.

  Args:
    rate: a learning rate by step instead of the config's schedule.
  """
  if run.stored_codes:
    ours = fingerprint(codec_values, run.omni.media.audio)
    for folder in converted_folders(run.config.data):
      check_codec(folder, ours)
  program = omni_program(run, codec_values, rate)
  vocab, ways = (
    Tokenizer(run.omni.tokenizer).vocab_size,
    sharding.ways(run.mesh, 'vocab'),
  )
  if vocab % ways:
    say(
      run.workdir,
      f'omni: the vocabulary of {vocab} ids does not divide by {sharding.said("vocab")}={ways}; every '
      'device keeps all of it, which changes no result',
    )
  batches = omni_batches(run)
  state = program.init(codec_values)
  if run.starts:
    state, said = start_from(run.config.init_from, state, own_codec=run.own_codec)
    say(run.workdir, said)
  return _stage(
    run,
    'omni',
    step=program.step,
    state=state,
    batches=batches,
    flops=step_flops(run.omni, run.budget).model,
    peak=peak_flops(jax.devices()[0].device_kind),
    profile=run.config.profile,
  )


def train_omni(run: Run) -> None:
  """Stage 2: the whole model. Nothing refers to its state afterwards."""
  with jax.set_mesh(run.mesh):
    loop.run(omni_stage(run, restore_codec(run)), run.workdir, run.mesh)


def evaluate(run: Run) -> None:
  """Stage 3: restores the last checkpoint, and writes metrics.json and report.html.

  It is done in this process, since a TPU belongs to one process; the memory of the
  trainer's state is free by then. The first of several processes sees to it, on one of
  its own devices, when the others are gone: they would not wait as long as it may take.
  """
  processes.disband()
  if jax.process_index():
    return
  from omni_jax.evaluate import run as evaluation  # only a run that evaluates needs it

  gc.collect()  # frees what is left of the trainer's state in reference cycles
  trained = evaluation.restore(run.workdir)
  evaluation.run(trained, run.workdir, log=functools.partial(print, flush=True))


STAGES = {'codec': train_codec, 'omni': train_omni, 'evaluate': evaluate}


def _checked(config: Any, workdir: str) -> Run:
  if jax.process_count() > 1 and not jax.distributed.is_initialized():
    raise UserError(
      f'{jax.process_count()} processes share the devices, but have not met: set '
      'config.distributed=True'
    )
  if unknown := [name for name in config.stages if name not in STAGES]:
    raise UserError(
      f'config.stages: {unknown} is unknown; a stage is one of {tuple(STAGES)}'
    )
  if 'evaluate' in config.stages[:-1] and jax.process_count() > 1:
    raise UserError(
      f"config.stages={config.stages}: of several processes 'evaluate' is the last stage; the others "
      'end with it'
    )
  return Run(config, workdir)


def run_all(config: Any, workdir: str) -> None:
  """All stages of the config, in order, in one process or in the same order in several.

  The same call goes on where the last one stopped.
  """
  run = processes.agreed(lambda: _checked(config, workdir))
  with contextlib.ExitStack() as stack:
    if not jax.process_index():
      for line in processes.agreed(lambda: _claimed(stack, config, workdir)):
        say(workdir, line)
      _write_config(config, epath.Path(workdir))
    else:
      processes.agreed(lambda: None)
    for name in config.stages:
      say(
        workdir,
        f'stage {name} on {jax.device_count()} x {jax.devices()[0].device_kind}',
      )
      STAGES[name](run)


def _claimed(stack: contextlib.ExitStack, config: Any, workdir: str) -> list[str]:
  """Takes the folder, and compares the config with those of its checkpoints, before anything is written there."""
  stack.enter_context(claimed(workdir))
  said, now = [], changes.plain(config)
  for stage in changes.NETWORK:
    step, about = last_about(workdir, stage)
    if stage in config.stages and 'config' in about:
      found = changes.between(stage, about['config'], now)
      if step >= config[stage].steps:  # done: it reads no more data
        found = found._replace(data=[], free=[])
      said += changes.checked(
        workdir, stage, step, found, strict=config.get('loader', {}).get('strict', True)
      )
  return said


def _write_config(config: Any, folder: epath.Path) -> None:
  """Whole or not at all: other commands read it at any time."""
  part = folder / 'config.json.part'
  part.write_text(json.dumps(config.to_dict(), indent=2, default=list) + '\n')
  part.replace(folder / 'config.json')
