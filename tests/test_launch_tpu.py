"""launch/tpu.sh: its commands, and a run on two hosts that are folders of this machine."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

from launching import environment, executable, LAUNCH, run
import pytest

ON_ALL_HOSTS = ['--node=all', '--worker=all']
POD = {'TPU': 'omni', 'ZONE': 'us-west4-a'}

# Takes the place of gcloud: copies to the hosts in $HOSTS, runs commands on them one
# after the other, and tells the states in the file $STATES.
GCLOUD = r"""
for argument; do
  case $argument in --command=*) command=${argument#--command=} ;; esac
done
code=0
for host in "$HOSTS"/*; do
  case $4 in
    scp) cp "$5" "$host/" ;;
    ssh) (cd "$host" && HOME=$host bash -c "$command") || code=$? ;;
  esac
done
if [ "$4" = describe ]; then
  head -n 1 "$STATES"
  sed -i 1d "$STATES"
fi
exit $code
"""
# Takes the place of uv: the Python that it installs is preempted, then trains until it
# is stopped.
UV = r"""
echo "$*" >>"$HOME/uv"
[ "$1" = venv ] || exit 0
mkdir -p "$HOME/omni_jax/.venv/bin"
cat >"$HOME/omni_jax/.venv/bin/python" <<'END'
#!/bin/bash
echo "python $*"
if [ ! -e ~/preempted ]; then
  touch ~/preempted
  exit 75
fi
trap 'echo saved; exit 75' TERM
touch ~/training
for k in $(seq 400); do sleep 0.05; done
END
chmod +x "$HOME/omni_jax/.venv/bin/python"
"""


def dry_run(*arguments: str, **variables: str) -> list[list[str]]:
  """Returns the words of the commands that launch/tpu.sh would run."""
  result = run('tpu.sh', *arguments, **POD, DRY_RUN='1', **variables)
  assert not result.returncode, result.stderr
  return [shlex.split(line) for line in result.stdout.splitlines()]


def queued_resources(*words: str) -> list[str]:
  """Returns a command of gcloud for queued resources, in the zone of `POD`."""
  return ['gcloud', 'compute', 'tpus', 'queued-resources', *words, '--zone=us-west4-a']


@pytest.mark.parametrize(
  'variables, flags',
  [
    ({}, ['--accelerator-type=v5litepod-16', 'v2-alpha-tpuv5-lite', '--node-id=omni']),
    ({'TYPE': 'v5p-128'}, ['v2-alpha-tpuv5', '--node-id=omni']),
    ({'TYPE': 'v6e-64', 'SPOT': '1'}, ['v2-alpha-tpuv6e', '--node-id=omni', '--spot']),
    ({'TYPE': 'v4-8'}, ['tpu-ubuntu2204-base', '--node-id=omni']),
    ({'RUNTIME': 'mine'}, ['mine', '--node-id=omni']),
    (
      {'SLICES': '2', 'PROJECT': 'p'},
      ['v2-alpha-tpuv5-lite', '--node-count=2', '--node-prefix=omni', '--project=p'],
    ),
  ],
  ids=str,
)
def test_create_asks_for_slices_of_a_kind(variables, flags):
  (command,) = dry_run('create', '--reserved', **variables)
  assert command[:6] == queued_resources('create', 'omni')[:-1]
  for flag in [*flags, '--reserved', '--zone=us-west4-a']:
    prefix = '' if flag.startswith('--') else '--runtime-version='
    assert prefix + flag in command
  assert ('--spot' in command) == (variables.get('SPOT') == '1')


def test_other_commands():
  assert dry_run('delete') == [queued_resources('delete', 'omni', '--force')]
  state = queued_resources('describe', 'omni', '--format=value(state.state)')
  assert dry_run('wait') == [state]
  for words in (['logs'], ['logs', '5'], ['stop']):
    remote = f'--command=bash omni_jax/launch/host.sh {" ".join(words)}'
    (command,) = dry_run(*words)
    assert command == queued_resources('ssh', 'omni', *ON_ALL_HOSTS, remote)


def test_ssh_runs_any_command_on_every_host():
  (command,) = dry_run('ssh', 'df -h /dev/shm')
  assert command == queued_resources(
    'ssh', 'omni', *ON_ALL_HOSTS, '--command=df -h /dev/shm'
  )


def test_train_passes_the_overrides_as_they_are():
  words = ['train', 'configs/tiny.py', 'gs://b/a b', "--config.stages=('omni',)"]
  (command,) = dry_run(*words)
  (remote,) = [word for word in command if word.startswith('--command=')]
  remote = remote.removeprefix('--command=')
  assert shlex.split(remote) == ['bash', 'omni_jax/launch/host.sh', *words]


def test_install_copies_the_commit_or_clones():
  archive, copy, install = dry_run('install', EXTRAS='tpu')
  assert archive[:2] == ['git', '-C']
  assert archive[-1] == 'HEAD'
  assert copy[3:5] == ['queued-resources', 'scp']
  assert copy[5].endswith('/omni_jax.tar.gz')
  assert install[-2].endswith('host.sh install tpu')
  (clone,) = dry_run('install', SOURCE='https://example.org/omni_jax.git')
  assert 'git clone https://example.org/omni_jax.git omni_jax' in clone[-2]
  for command in (install, clone):
    remote = command[-2].removeprefix('--command=')
    subprocess.run(['bash', '-n', '-c', remote], check=True)  # checks only the syntax


@pytest.mark.parametrize(
  'arguments, variables',
  [
    (['create'], {'TPU': 'omni'}),
    (['create'], {'ZONE': 'us-west4-a'}),
    (['train', 'configs/tiny.py'], POD),
    (['creat'], POD),
    (['ssh'], POD),
    (['ssh', 'df', '-h'], POD),
  ],
)
def test_mistakes_print_the_usage(arguments, variables):
  result = run('tpu.sh', *arguments, **variables, DRY_RUN='1')
  assert result.returncode == 2
  assert result.stderr.startswith('usage:')
  assert not result.stdout


def test_install_needs_a_commit_or_a_source(tmp_path):
  shutil.copytree(LAUNCH, tmp_path / 'launch')
  result = run('tpu.sh', 'install', folder=tmp_path / 'launch', **POD, DRY_RUN='1')
  assert result.returncode == 2
  assert 'SOURCE' in result.stderr


class Pod:
  """Two hosts, which are folders, and the checkout that is installed on them."""

  def __init__(self, folder: pathlib.Path):
    self.checkout = folder / 'checkout'
    shutil.copytree(LAUNCH, self.checkout / 'launch')
    self.git('init', '--quiet')
    self.commit()
    self.hosts = [folder / 'hosts' / name for name in ('a', 'b')]
    for host in self.hosts:
      host.mkdir(parents=True)
    self.states = folder / 'states'
    executable(folder / 'bin' / 'gcloud', GCLOUD)
    executable(folder / 'bin' / 'uv', UV)
    self.variables = {
      **POD,
      'HOSTS': str(folder / 'hosts'),
      'STATES': str(self.states),
      'SECONDS_BETWEEN': '0',
      'PATH': f'{folder / "bin"}:{os.environ["PATH"]}',
    }

  def git(self, *arguments: str) -> None:
    name = ['-c', 'user.name=test', '-c', 'user.email=test@example.org']
    subprocess.run(['git', '-C', self.checkout, *name, *arguments], check=True)

  def commit(self) -> None:
    self.git('add', '--all')
    self.git('commit', '--quiet', '--message=test')

  def tpu(self, *arguments: str) -> subprocess.CompletedProcess:
    """Runs launch/tpu.sh of the checkout."""
    launch = self.checkout / 'launch'
    return run('tpu.sh', *arguments, folder=launch, **self.variables)

  def wait_for(self, name: str) -> None:
    """Waits until every host has a file of this name in its home."""
    limit = time.monotonic() + 30
    while not all((host / name).exists() for host in self.hosts):
      assert time.monotonic() < limit, f'no {name}'
      time.sleep(0.05)


@pytest.fixture
def pod(tmp_path):
  pod = Pod(tmp_path)
  yield pod
  pod.tpu('stop')


def test_a_run_from_install_to_stop(pod):
  result = pod.tpu('install')
  assert not result.returncode, result.stderr
  assert result.stdout.count(': installed') == 2
  for host in pod.hosts:
    venv, install = (host / 'uv').read_text().splitlines()
    assert '--python 3.12' in venv
    assert install.endswith(f'--editable {host}/omni_jax[tpu,demo,eval]')
  result = pod.tpu('train', 'c.py', 'gs://b/a b', '--config.name=x y')
  assert not result.returncode, result.stderr
  pod.wait_for('training')
  command = (
    'python -m omni_jax.train --config=c.py --workdir=gs://b/a b '
    '--config.distributed=True --config.cpu_devices=1 --config.name=x y'
  )
  for host in pod.hosts:
    log = (host / 'omni_jax.log').read_text().splitlines()
    assert log[1:] == [command, 'preempted and saved; starting again', command]
  again = pod.tpu('train', 'c.py', 'gs://b/a b')
  assert again.returncode
  assert again.stderr.count('a run is going on') == 2
  logs = pod.tpu('logs', '1').stdout.splitlines()
  assert [line.split(': ', 1)[1] for line in logs] == ['a run is going on', command] * 2
  stopped = pod.tpu('stop').stdout
  assert stopped.count('no run is going on') == 2
  assert stopped.count('ended with exit code 75') == 2
  for host in pod.hosts:
    assert 'saved' in (host / 'omni_jax.log').read_text().splitlines()


def test_a_second_install_replaces_the_code_and_nothing_else(pod):
  pod.tpu('install')
  home = pod.hosts[0] / 'omni_jax'
  (home / 'runs').mkdir()
  (pod.checkout / 'launch' / 'new.txt').touch()
  pod.commit()
  (pod.checkout / 'launch' / 'later.txt').touch()
  (home / 'launch' / 'old.txt').touch()
  result = pod.tpu('install')
  assert 'without the changes that are not committed' in result.stderr
  names = {path.name for path in (home / 'launch').glob('*.txt')}
  assert names == {'new.txt'}
  assert {'runs', '.venv'} <= {path.name for path in home.iterdir()}


@pytest.mark.parametrize(
  'states, code',
  [
    (['WAITING_FOR_RESOURCES', 'WAITING_FOR_RESOURCES', 'ACTIVE'], 0),
    (['PROVISIONING', 'FAILED'], 1),
    (['SUSPENDED'], 1),
  ],
  ids=str,
)
def test_wait_ends_when_the_state_is_final(pod, states, code):
  pod.states.write_text('\n'.join(states) + '\n')
  result = pod.tpu('wait')
  assert result.returncode == code
  assert result.stdout.splitlines() == list(dict.fromkeys(states))


def launch_lines(page: str) -> list[str]:
  """Returns the lines of a page's bash blocks that call a script of launch/."""
  lines = []
  for block in re.findall(r'```bash\n(.*?)```', page, re.DOTALL):
    for line in block.replace('\\\n', ' ').replace('…', '').splitlines():
      if re.match(r'([A-Z]+=\S+ )*launch/', line):
        lines.append(line)
  return lines


PAGE = LAUNCH.parent / 'docs' / 'tpu.md'


@pytest.mark.parametrize('line', launch_lines(PAGE.read_text()))
def test_the_commands_of_the_page_work_in_a_dry_run(line):
  variables = environment(
    **POD, IMAGE='image', CLUSTER='c', DRY_RUN='1', PYTHON=sys.executable
  )
  command = ['bash', '-euo', 'pipefail', '-c', line]
  result = subprocess.run(
    command, cwd=LAUNCH.parent, env=variables, capture_output=True, text=True
  )
  assert not result.returncode, result.stderr
  assert result.stdout


@pytest.mark.skipif(not shutil.which('gcloud'), reason='needs gcloud')
def test_gcloud_knows_the_commands(tmp_path):
  """gcloud's own linter parses the commands, without running them or any network."""
  lines = [
    *dry_run('create', SLICES='2', SPOT='1', PROJECT='p'),
    *dry_run('create', '--reserved'),
    *dry_run('wait'),
    *dry_run('install')[1:],
    *dry_run('train', 'configs/tiny.py', 'gs://b/r', "--config.stages=('omni',)"),
    *dry_run('delete'),
  ]
  commands = []
  for number, words in enumerate(lines):
    text = ' '.join(shlex.quote(word) for word in words)
    commands.append({'id': number + 1, 'command_string': text})
  file = tmp_path / 'commands.json'
  file.write_text(json.dumps(commands))
  variables = environment(
    CLOUDSDK_CONFIG=str(tmp_path / 'config'),
    CLOUDSDK_CORE_DISABLE_USAGE_REPORTING='true',
    CLOUDSDK_CORE_CHECK_GCE_METADATA='false',
  )
  linter = ['gcloud', 'meta', 'lint-gcloud-commands', f'--commands-file={file}']
  result = subprocess.run(linter, env=variables, capture_output=True, text=True)
  if result.returncode:
    pytest.skip(f'no linter in this gcloud: {result.stderr.splitlines()[:1]}')
  results = json.loads(result.stdout)
  assert len(results) == len(commands)
  for parsed in results:
    assert parsed['success'], parsed['error_message']
