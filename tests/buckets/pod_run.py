"""Plays a pod run that lives in a bucket, on this machine, and prints what it does.

  python tests/buckets/pod_run.py [gs|s3]

configs/tiny.py is trained by two processes into a bucket on loopback, killed, resumed
by one process, evaluated on eight devices and sampled; plain Orbax reads its weights.
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path += [str(ROOT), str(ROOT / 'tests')]

from buckets.servers import serving  # noqa: E402
from etils import epath  # noqa: E402

from omni_jax.checkpoint import step_folders  # noqa: E402

EXPORT = """
import sys
import jax
import orbax.checkpoint as ocp
checkpointer = ocp.StandardCheckpointer()
here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
shapes = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
  checkpointer.metadata(sys.argv[1]).item_metadata.tree,
)
params = checkpointer.restore(sys.argv[1], shapes)['params']
leaves = jax.tree.leaves(params)
print(f'plain Orbax: {len(leaves)} arrays, {sum(x.size for x in leaves):,} parameters')
"""


def show(text: str) -> None:
  print(f'\n# {text}', flush=True)


def call(*arguments: str, **variables: str) -> str:
  """Runs a Python program to its end; prints and returns its standard output."""
  result = subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env={**os.environ, **variables},
    capture_output=True,
    text=True,
  )
  print(result.stdout, end='', flush=True)
  if result.returncode:
    raise SystemExit(f'{arguments} ended with {result.returncode}:\n{result.stderr}')
  return result.stdout


def train_and_kill(workdir: str) -> int:
  """Trains with two processes until the model has a checkpoint, and kills both.

  Returns the step of the checkpoint.
  """
  process = subprocess.Popen(
    ['bash', 'launch/local.sh', 'configs/tiny.py', workdir, '--config.loader.lanes=2'],
    cwd=ROOT,
    env={**os.environ, 'PROCESSES': '2', 'PYTHON': sys.executable},
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )
  folder = epath.Path(workdir) / 'checkpoints' / 'omni'
  while not (steps := step_folders.complete(folder)):
    assert process.poll() is None, f'training ended with {process.returncode}'
    time.sleep(0.2)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  return max(steps)


def main(scheme: str) -> None:
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['PYTHONPATH'] = str(ROOT)
  with serving(scheme) as bucket, tempfile.TemporaryDirectory() as local:
    workdir = f'{bucket}/tiny'
    show('two processes train, and are killed once the model has a checkpoint')
    step = train_and_kill(workdir)
    show('one process resumes and trains to the end')
    lines = call(
      '-m',
      'omni_jax.train',
      '--config=configs/tiny.py',
      f'--workdir={workdir}',
      "--config.stages=('codec','omni')",
      '--config.loader.lanes=2',
    )
    assert f'omni: resumed at step {step} of 30' in lines
    show('eight devices evaluate')
    call('-m', 'omni_jax.evaluate', f'--workdir={workdir}', JAX_NUM_CPU_DEVICES='8')
    scores = epath.Path(workdir) / 'eval' / '30' / 'metrics.json'
    assert scores.exists()
    show('a reply')
    call(
      '-m',
      'omni_jax.generate',
      f'--workdir={workdir}',
      '--prompt=seven',
      '--want=image',
      f'--out={bucket}/replies',
    )
    assert (epath.Path(bucket) / 'replies' / '000_0.png').exists()
    show('plain Orbax reads the weights')
    script = pathlib.Path(local) / 'export.py'
    script.write_text(EXPORT)
    if scheme == 'gs':  # Orbax itself has no s3:// paths
      call(str(script), f'{workdir}/checkpoints/omni/30/model')


if __name__ == '__main__':
  main(sys.argv[1] if len(sys.argv) > 1 else 'gs')
