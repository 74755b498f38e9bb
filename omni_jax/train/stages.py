"""The stages of a run: autoencoders -> omni -> evaluate; each is resumable and does nothing when it is already done."""

import contextlib
import functools
import gc
import json
from typing import Any

from etils import epath
import jax
import optax

from omni_jax import sharding
from omni_jax.checkpoint import changes
from omni_jax.checkpoint.checkpoints import has_checkpoint, last_about
from omni_jax.checkpoint.claim import claimed
from omni_jax.checkpoint.frozen import fingerprint, restore_autoencoder
from omni_jax.checkpoint.init_from import fresh_names, start_from
from omni_jax.checkpoint.init_values import init_autoencoder, init_frozen
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.chips import peak_flops
from omni_jax.config import EVALUATE, OMNI
from omni_jax.data.crops import CropLoader
from omni_jax.data.loader import lanes_of, Loader
from omni_jax.data.making import Making
from omni_jax.data.sources.shards import check_codecs
from omni_jax.data.sources.table import (
  check_tokenizers,
  converted_folders,
  source_of,
  training_examples,
  training_payloads,
)
from omni_jax.errors import UserError
from omni_jax.modalities.devices import TABLES, Tables
from omni_jax.model import abstract_autoencoder
from omni_jax.objective import Autoencoding
from omni_jax.run_log import say
from omni_jax.train import loop, processes
from omni_jax.train import state as states
from omni_jax.train.flops import step_flops
from omni_jax.train.optim import make_optimizer
from omni_jax.train.plan import omni_program, Plan
from omni_jax.train.step import make_step, Update


class Run(Plan):
  """What all stages share: the plan, where it runs, and this process's part of the rows."""

  def __init__(self, config: Any, workdir: str, tables: Tables = TABLES):
    """Checks what can be checked before anything is written."""
    super().__init__(config, tables=tables)
    self.workdir = workdir
    self.part = sharding.input_part(self.mesh)
    lanes_of(self.budget.rows, self.run_config.loader, self.part[1])
    source_of(config.data)
    check_tokenizers(config.data, self.hosts.tokenizer)
    for name in self.run_config.autoencoders:
      self._check_source(name)
    self._check_codes()
    self.starts = bool(config.init_from) and not has_checkpoint(workdir, OMNI)
    if self.starts:
      fresh_names(config.init_from, self._shapes(), own=self.own_autoencoders())

  def taken_from(self, name: str) -> str:
    """Returns the folder of the run whose autoencoder is used, or ''."""
    return self.run_config.autoencoders[name].init_from

  def needs(self, name: str) -> bool:
    """Whether rows have room for anything that the model takes as an autoencoder's codes."""
    for stream, autoencoder in self.model_config.coded().items():
      pieces, _ = self.budget.streams.get(stream, (0, 0))
      if autoencoder == name and pieces:
        return True
    return False

  def own_autoencoders(self) -> list[str]:
    """Returns the autoencoders that are not those of the run that the weights start from."""
    own = []
    for name in self.run_config.autoencoders:
      trained = name in self.run_config.stages
      if trained or not self.needs(name) or self.taken_from(name):
        own.append(name)
    return own

  def _check_source(self, name: str) -> None:
    source = self.taken_from(name)
    if not source:
      return
    said = f'config.{name}.init_from={source}'
    if name in self.run_config.stages:
      raise UserError(
        f'{said} takes a finished {name}: take {name!r} out of config.stages'
      )
    if not has_checkpoint(source, name):
      raise UserError(f'{said}: no checkpoint of stage {name!r} there')

  def _check_codes(self) -> None:
    """Codes that were stored are of use to a run that has the autoencoder that made them."""
    if not self.stored_codes:
      return
    said = "config.data.codes='stored'"
    own = self.own_autoencoders()
    specs = {spec.name: spec for spec in self.hosts.streams}
    for stream, name in self.model_config.coded().items():
      of_another = self.config.init_from and name not in own
      missing = of_another or not has_checkpoint(self.workdir, name)
      if not self.taken_from(name) and missing:
        raise UserError(
          f'{said}: this run has not got the {name} that made them; set config.{name}.init_from to the run that has, '
          f'and take {name!r} out of config.stages'
        )
      spec = specs[stream]
      if not spec.written and spec.medium in self.run_config.augment:
        raise UserError(
          f'{said}: what is read was coded as it was recorded, so that config.data.augment cannot change it: take '
          f"config.data.augment.{spec.medium} out of the config, or config.data.codes='computed'"
        )

  def _shapes(self) -> TrainState:
    """Returns the shapes of the omni stage's state."""

    def init() -> TrainState:
      values = init_frozen(self.model_config, seed=0)
      tx = optax.identity()
      return states.init_model_state(self.model_config, tx, values, seed=0)

    return jax.eval_shape(init)


def _stage(run: Run, name: str, **parts: Any) -> loop.Stage:
  stage = run.run_config.autoencoders.get(name, run.run_config.omni)
  return loop.Stage(
    name,
    stage.steps,
    log_every=stage.log_every,
    save_every=stage.save_every,
    bad_steps=stage.bad_steps,
    repeat_every=run.config.repeat_every,
    about={'config': changes.plain(run.config)},
    **parts,
  )


def autoencoder_stage(run: Run, name: str) -> loop.Stage:
  """Returns the stage of an autoencoder with a fresh state."""
  stage, config = run.run_config.autoencoders[name], run.model_config
  medium, row = config.tables.autoencoders()[name]
  model = abstract_autoencoder(config, name)
  roles = sharding.param_roles(model)
  tx = make_optimizer(run.optim[name], stage.steps, roles=roles)
  seed = run.config.seed
  init = jax.jit(
    lambda: states.init_autoencoder_state(config, name, tx, seed=seed),
    out_shardings=sharding.replicated(run.mesh),
  )
  batches = CropLoader(
    training_payloads(run.config.data, run.hosts, medium),
    run.hosts[medium],
    batch=stage.batch,
    pieces=stage.pieces,
    seed=seed,
    shard=run.part,
  )
  objective = Autoencoding(row, config.autoencoders[name])
  update = Update(refresh=objective.refresh)
  step = jax.jit(make_step(objective, model, tx, update), donate_argnums=0)
  return _stage(run, name, step=step, state=init(), batches=batches)


def train_autoencoder(run: Run, name: str) -> None:
  """Trains an autoencoder on its own, on crops."""
  with jax.set_mesh(run.mesh):
    loop.run(autoencoder_stage(run, name), run.workdir, run.mesh)


def restore_frozen(run: Run) -> dict[str, Any]:
  """Returns the values of all autoencoders, by name."""
  return {name: _restored(run, name) for name in run.run_config.autoencoders}


def _restored(run: Run, name: str) -> Any:
  """Returns the values of a finished autoencoder, this run's or that of config.NAME.init_from.

  Fresh ones where they are replaced or rows have room for none of its codes.
  """
  source, whole = run.taken_from(name), sharding.replicated(run.mesh)
  replaced = run.config.init_from or not run.needs(name)
  if name not in run.run_config.stages and not source and replaced:
    init = functools.partial(init_autoencoder, run.model_config, name, seed=0)
    return jax.jit(init, out_shardings=whole)()
  values, step = restore_autoencoder(
    source or run.workdir, run.model_config, name, whole
  )
  steps = run.run_config.autoencoders[name].steps
  if not source and step < steps:
    raise UserError(
      f'the {name} stage stands at step {step} of {steps}; finish it first: config.stages must hold {name!r} before '
      f'{OMNI!r}'
    )
  return values


def making_of(run: Run) -> Making:
  """Returns what the batches of the omni stage are made of."""
  examples = training_examples(run.config.data, run.hosts)
  return Making(examples, run.hosts, run.config.seed, run.run_config.augment)


def omni_batches(run: Run) -> Loader:
  """Returns the batches of the omni stage, from its first."""
  return Loader(making_of(run), run.budget, run.run_config.loader, shard=run.part)


def omni_stage(
  run: Run, frozen: dict[str, Any], rate: optax.Schedule | None = None
) -> loop.Stage:
  """Returns the omni stage with a fresh state: the whole model on every medium, its autoencoders frozen.

  Args:
    frozen: values of the autoencoders.
    rate: a learning rate by step instead of the config's schedule.
  """
  if run.stored_codes:
    ours = {
      name: fingerprint(run.model_config, name, values)
      for name, values in frozen.items()
    }
    for folder in converted_folders(run.config.data):
      check_codecs(folder, ours)
  program = omni_program(run, frozen, rate)
  vocab, ways = run.hosts.tokenizer.vocab_size, sharding.ways(run.mesh, 'vocab')
  if vocab % ways:
    say(
      run.workdir,
      f'omni: the vocabulary of {vocab} ids does not divide by {sharding.axes_named("vocab")}={ways}; every device '
      'keeps all of it, which changes no result',
    )
  batches = omni_batches(run)
  state = program.init(frozen)
  if run.starts:
    own = run.own_autoencoders()
    state, line = start_from(run.config.init_from, state, own=own)
    say(run.workdir, line)
  return _stage(
    run,
    OMNI,
    step=program.step,
    state=state,
    batches=batches,
    flops=step_flops(run.model_config, run.budget).model,
    peak=peak_flops(jax.devices()[0].device_kind),
    profile=run.config.profile,
  )


def train_omni(run: Run) -> None:
  """Trains the whole model. Nothing refers to its state afterwards."""
  with jax.set_mesh(run.mesh):
    loop.run(omni_stage(run, restore_frozen(run)), run.workdir, run.mesh)


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
  trained = evaluation.restore(run.workdir, tables=run.model_config.tables)
  evaluation.run(trained, run.workdir, log=functools.partial(print, flush=True))


def run_stage(run: Run, name: str) -> None:
  """Runs one stage of the config."""
  if name == EVALUATE:
    evaluate(run)
  elif name == OMNI:
    train_omni(run)
  else:
    train_autoencoder(run, name)


def _checked(config: Any, workdir: str, tables: Tables) -> Run:
  if jax.process_count() > 1 and not jax.distributed.is_initialized():
    raise UserError(
      f'{jax.process_count()} processes share the devices, but have not met: set '
      'config.distributed=True'
    )
  run = Run(config, workdir, tables)
  if EVALUATE in run.run_config.stages[:-1] and jax.process_count() > 1:
    raise UserError(
      f'config.stages={config.stages}: of several processes {EVALUATE!r} is the last stage; the others end with it'
    )
  return run


def run_all(config: Any, workdir: str, tables: Tables = TABLES) -> None:
  """Runs all stages of the config, in order, in one process or in the same order in several.

  The same call goes on where the last one stopped.
  """
  run = processes.agreed(lambda: _checked(config, workdir, tables))
  with contextlib.ExitStack() as stack:
    if not jax.process_index():
      for line in processes.agreed(lambda: _claimed(stack, run)):
        say(workdir, line)
      _write_config(config, epath.Path(workdir))
    else:
      processes.agreed(lambda: None)
    for name in run.run_config.stages:
      kind = jax.devices()[0].device_kind
      say(workdir, f'stage {name} on {jax.device_count()} x {kind}')
      run_stage(run, name)


def _claimed(stack: contextlib.ExitStack, run: Run) -> list[str]:
  """Takes the folder, and compares the config with those of its checkpoints, before anything is written there."""
  stack.enter_context(claimed(run.workdir))
  lines, now = [], changes.plain(run.config)
  tables = run.model_config.tables
  media: dict[str, str | None] = {OMNI: None}
  for name, (medium, _) in tables.autoencoders().items():
    media[name] = medium
  for name in run.run_config.stages:
    if name not in media:
      continue
    step, about = last_about(run.workdir, name)
    if 'config' not in about:
      continue
    found = changes.between(name, about['config'], now, media[name])
    if step >= run.config[name].steps:  # done: it reads no more data
      found = found._replace(data=[], free=[])
    strict = run.run_config.loader.strict
    lines += changes.checked(run.workdir, name, step, found, strict=strict)
  return lines


def _write_config(config: Any, folder: epath.Path) -> None:
  """Whole or not at all: other commands read it at any time."""
  part = folder / 'config.json.part'
  part.write_text(json.dumps(config.to_dict(), indent=2, default=list) + '\n')
  part.replace(folder / 'config.json')
