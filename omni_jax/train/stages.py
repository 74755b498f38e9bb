"""Runs the stages of a run: autoencoders -> omni -> evaluate.

Each can be resumed, and does nothing if it is already finished.
"""

import contextlib
import functools
import gc
from typing import Any

import jax
import optax

from omni_jax import sharding
from omni_jax.checkpoint import changes
from omni_jax.checkpoint.checkpoints import has_checkpoint, last_about
from omni_jax.checkpoint.claim import exclusive
from omni_jax.checkpoint.frozen import fingerprint, finished_autoencoder
from omni_jax.checkpoint.init_from import fresh_names, start_from
from omni_jax.checkpoint.init_values import init_autoencoder, init_frozen
from omni_jax.checkpoint.saved_config import save_config
from omni_jax.checkpoint.train_state import TrainState
from omni_jax.chips import peak_flops
from omni_jax.config import EVALUATE, OMNI
from omni_jax.data.crops import CropLoader
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import lanes_of, Loader
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
from omni_jax.paths import checked
from omni_jax.run_log import say
from omni_jax.train import loop, processes
from omni_jax.train import state as states
from omni_jax.train.flops import step_flops
from omni_jax.train.mesh_checks import describe_axes
from omni_jax.train.optim import make_optimizer, schedule
from omni_jax.train.plan import omni_program, Plan
from omni_jax.train.sinks import check_sinks
from omni_jax.train.step import make_step, Update


class Run(Plan):
  """The plan of a run in its folder, which all stages share.

  Attributes:
    workdir: the run's folder.
    part: index of this process's part of the rows, and the number of parts.
    starts_from_weights: whether the weights start from those of the run
      config.init_from.
  """

  def __init__(self, config: Any, workdir: str, tables: Tables = TABLES):
    """Checks everything that can be checked before anything is written.

    Raises:
      UserError: if a setting, a data source or the run that this one starts from is
        wrong.
    """
    super().__init__(config, tables=tables)
    self.workdir = workdir
    self.part = sharding.process_part(self.mesh)
    lanes_of(self.budget.rows, self.run_config.loader, self.part[1])
    source_of(config.data)
    check_tokenizers(config.data, self.hosts.tokenizer)
    for name in self.run_config.autoencoders:
      self._check_source(name)
    self._check_codes()
    self.starts_from_weights = bool(config.init_from) and not has_checkpoint(
      workdir, OMNI
    )
    if self.starts_from_weights:
      fresh_names(config.init_from, self._shapes(), own=self.own_autoencoders())

  def source_run(self, name: str) -> str:
    """Returns the folder of the run that an autoencoder comes from; '' for this run."""
    return self.run_config.autoencoders[name].init_from

  def has_room_for(self, name: str) -> bool:
    """Returns whether rows have room for codes of this autoencoder."""
    for stream, autoencoder in self.model_config.coded_streams().items():
      pieces, _ = self.budget.room(stream)
      if autoencoder == name and pieces:
        return True
    return False

  def own_autoencoders(self) -> list[str]:
    """Returns the autoencoders that do not come from the run config.init_from."""
    own = []
    for name in self.run_config.autoencoders:
      is_trained = name in self.run_config.stages
      if is_trained or self.source_run(name) or not self.has_room_for(name):
        own.append(name)
    return own

  def _check_source(self, name: str) -> None:
    """Checks the run that an autoencoder comes from, if there is one."""
    source = self.source_run(name)
    if not source:
      return
    setting = f'config.{name}.init_from={source}'
    if name in self.run_config.stages:
      raise UserError(
        f'{setting} uses a finished {name}: remove {name!r} from config.stages'
      )
    if not has_checkpoint(source, name):
      raise UserError(f'{setting}: no checkpoint of stage {name!r} there')

  def _check_codes(self) -> None:
    """Checks that the run has the autoencoders that computed its stored codes."""
    if not self.stored_codes:
      return
    setting = "config.data.codes='stored'"
    specs = {spec.name: spec for spec in self.hosts.streams}
    for stream, name in self.model_config.coded_streams().items():
      if not self._has_autoencoder(name):
        raise UserError(
          f'{setting}: this run does not have the {name} that computed them; set '
          f'config.{name}.init_from to the run that has it, and remove {name!r} from '
          'config.stages'
        )
      spec = specs[stream]
      if not spec.written and spec.medium in self.run_config.augment:
        raise UserError(
          f'{setting}: media to be read were encoded as they were recorded, so '
          'config.data.augment cannot change them: remove '
          f"config.data.augment.{spec.medium}, or set config.data.codes='computed'"
        )

  def _has_autoencoder(self, name: str) -> bool:
    """Returns whether config.NAME.init_from or this folder has the autoencoder."""
    if self.source_run(name):
      return True
    if self.config.init_from and name not in self.own_autoencoders():
      return False
    return has_checkpoint(self.workdir, name)

  def _shapes(self) -> TrainState:
    """Returns the shapes of the omni stage's state."""

    def init() -> TrainState:
      values = init_frozen(self.model_config, seed=0)
      tx = optax.identity()
      return states.init_model_state(self.model_config, tx, values, seed=0)

    return jax.eval_shape(init)


def _stage(run: Run, name: str, **parts: Any) -> loop.Stage:
  """Returns a stage with the settings of the config and the given parts."""
  stage = run.run_config.autoencoders.get(name, run.run_config.omni)
  return loop.Stage(
    name,
    stage.steps,
    log_every=stage.log_every,
    save_every=stage.save_every,
    bad_steps=stage.bad_steps,
    repeat_every=run.config.repeat_every,
    about={'config': changes.plain(run.config)},
    writers=run.config.writers,
    config=changes.plain(run.config),
    **parts,
  )


def autoencoder_stage(run: Run, name: str) -> loop.Stage:
  """Returns the stage of an autoencoder with a fresh state."""
  stage = run.run_config.autoencoders[name]
  config = run.model_config
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
  rate = schedule(run.optim[name], stage.steps)
  return _stage(run, name, step=step, state=init(), batches=batches, rate=rate)


def train_autoencoder(run: Run, name: str) -> None:
  """Trains an autoencoder alone, on crops."""
  with jax.set_mesh(run.mesh):
    loop.run(autoencoder_stage(run, name), run.workdir, run.mesh)


def restore_frozen(run: Run) -> dict[str, Any]:
  """Returns the values of all autoencoders, by name."""
  return {name: _frozen_values(run, name) for name in run.run_config.autoencoders}


def _frozen_values(run: Run, name: str) -> Any:
  """Returns the values of a finished autoencoder.

  It is this run's or that of config.NAME.init_from. The values are fresh if they will
  be replaced by those of config.init_from, or if rows have room for none of its codes.

  Raises:
    UserError: if the stage of the autoencoder is not finished.
  """
  replicated = sharding.replicated(run.mesh)
  is_unused = run.config.init_from or not run.has_room_for(name)
  is_own = not run.source_run(name)
  if is_unused and is_own and name not in run.run_config.stages:
    init = functools.partial(init_autoencoder, run.model_config, name, seed=0)
    return jax.jit(init, out_shardings=replicated)()
  return finished_autoencoder(
    run.workdir, run.config, run.model_config, name, replicated
  )


def maker_of(run: Run) -> ExampleMaker:
  """Returns the maker of the omni stage's examples."""
  examples = training_examples(run.config.data, run.hosts)
  return ExampleMaker(examples, run.hosts, run.config.seed, run.run_config.augment)


def omni_batches(run: Run) -> Loader:
  """Returns the batches of the omni stage, from the first one on."""
  return Loader(maker_of(run), run.budget, run.run_config.loader, shard=run.part)


def omni_stage(
  run: Run, frozen: dict[str, Any], rate: optax.Schedule | None = None
) -> loop.Stage:
  """Returns the omni stage with a fresh state.

  It trains the whole model on every medium; its autoencoders are frozen.

  Args:
    frozen: values of the autoencoders by name.
    rate: a learning rate by step, used instead of the config's schedule.
  """
  if run.stored_codes:
    fingerprints = {}
    for name, values in frozen.items():
      fingerprints[name] = fingerprint(run.model_config, name, values)
    for folder in converted_folders(run.config.data):
      check_codecs(folder, fingerprints)
  program = omni_program(run, frozen, rate)
  vocab = run.hosts.tokenizer.vocab_size
  shards = sharding.num_shards(run.mesh, 'vocab')
  if vocab % shards:
    say(
      run.workdir,
      f'omni: the vocabulary of {vocab} ids is not divisible by '
      f'{describe_axes(run.mesh, "vocab")}={shards}; every device keeps all of it, which '
      'does not change the results',
    )
  batches = omni_batches(run)
  state = program.init(frozen)
  if run.starts_from_weights:
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
    rate=rate or schedule(run.optim[OMNI], run.run_config.omni.steps),
  )


def train_omni(run: Run) -> None:
  """Trains the whole model. Nothing keeps its state in memory afterwards."""
  with jax.set_mesh(run.mesh):
    loop.run(omni_stage(run, restore_frozen(run)), run.workdir, run.mesh)


def evaluate(run: Run) -> None:
  """Evaluates the last checkpoint: writes metrics.json and report.html.

  It runs in this process, since a TPU belongs to one process; the memory of the
  trainer's state is free by then. All devices of the process share the prompts.

  With several processes, the first one evaluates on its own devices after the others
  have ended. Texts and media are laid out, judged and written by one host, between runs
  of programs whose number depends on the replies: with several hosts, each would have
  to repeat that work or wait for it. The cost is that the devices of the others are idle
  (15 of 16 hosts of a v5p-128), and that the weights have to fit on one host. Give such
  a run config.stages without 'evaluate', and `python -m omni_jax.evaluate` a host that
  is large enough.
  """
  processes.disband()
  if jax.process_index():
    return
  # Imported here, since only a run that evaluates needs it.
  from omni_jax.evaluate import run as evaluation

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


def _checked_run(config: Any, workdir: str, tables: Tables) -> Run:
  """Returns the run, after checks of its config and of the processes."""
  if jax.process_count() > 1 and not jax.distributed.is_initialized():
    raise UserError(
      f'{jax.process_count()} processes share the devices, but are not connected: set '
      'config.distributed=True'
    )
  check_sinks(config.writers)
  run = Run(config, checked(workdir, '--workdir'), tables)
  if EVALUATE in run.run_config.stages[:-1] and jax.process_count() > 1:
    raise UserError(
      f'config.stages={config.stages}: with several processes, {EVALUATE!r} has to be '
      'the last stage: all but the first process end there'
    )
  return run


def run_all(config: Any, workdir: str, tables: Tables = TABLES) -> None:
  """Runs all stages of the config in order.

  Several processes run them together, in the same order. Called again for the same
  folder, it resumes where it stopped.

  Raises:
    UserError: before anything is written, if the config, the data or the folder is not
      usable.
  """
  run = processes.agreed(lambda: _checked_run(config, workdir, tables))
  with contextlib.ExitStack() as stack:
    if not jax.process_index():
      for line in processes.agreed(lambda: _claim(stack, run)):
        say(run.workdir, line)
      save_config(config, run.workdir)
    else:
      processes.agreed(lambda: None)
    for name in run.run_config.stages:
      kind = jax.devices()[0].device_kind
      say(run.workdir, f'stage {name} on {jax.device_count()} x {kind}')
      run_stage(run, name)


def _claim(stack: contextlib.ExitStack, run: Run) -> list[str]:
  """Claims the folder, and compares the config with those of its checkpoints.

  Nothing is written there yet. The claim is released with the stack.

  Returns:
    Lines for the log about what has changed.
  """
  stack.enter_context(exclusive(run.workdir))
  lines = []
  config = changes.plain(run.config)
  media: dict[str, str | None] = {OMNI: None}
  for name, (medium, _) in run.model_config.tables.autoencoders().items():
    media[name] = medium
  for name in run.run_config.stages:
    if name not in media:
      continue
    step, about = last_about(run.workdir, name)
    if 'config' not in about:
      continue
    differences = changes.compare(name, about['config'], config, media[name])
    if step >= run.config[name].steps:  # finished: it reads no more data
      differences = differences._replace(data=[], free=[])
    strict = run.run_config.loader.strict
    lines += changes.check(run.workdir, name, step, differences, strict=strict)
  return lines
