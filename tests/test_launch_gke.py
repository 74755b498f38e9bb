"""launch/gke.sh and the files that it uses: the manifest of a JobSet, the image, xpk."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from typing import Any

import jsonschema
from launching import LAUNCH, run
import pytest
import yaml

from omni_jax.errors import MISTAKE, PREEMPTED

ROOT = LAUNCH.parent
IMAGE = 'us-docker.pkg.dev/p/r/omni_jax:1'
RUN = ('configs/omni_1b.py', 'gs://bucket/a b', "--config.stages=('omni',)")


def part(required: dict[str, Any], optional: dict[str, Any] | None = None) -> Any:
  """Returns the schema of an object that has these parts and no others."""
  properties = required | (optional or {})
  return {
    'type': 'object',
    'properties': properties,
    'required': list(required),
    'additionalProperties': False,
  }


def every(item: Any) -> Any:
  """Returns the schema of a list that is not empty."""
  return {'type': 'array', 'items': item, 'minItems': 1}


ANY: dict[str, Any] = {}
TEXT = {'type': 'string', 'minLength': 1}
COUNT = {'type': 'integer', 'minimum': 1}
TEXTS = every(TEXT)
RULE_NAME = {'type': 'string', 'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'}
ACTION = {'enum': ['FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts']}
EXIT_CODES = part(
  {'containerName': TEXT, 'operator': {'enum': ['In', 'NotIn']}, 'values': every(COUNT)}
)
CONDITION = part({'type': TEXT, 'status': {'const': 'True'}})
POD_RULE = part(
  {'action': {'const': 'FailJob'}},
  {'onExitCodes': EXIT_CODES, 'onPodConditions': every(CONDITION)},
)
CONTAINER = part(
  {
    'name': TEXT,
    'image': TEXT,
    'command': TEXTS,
    'args': TEXTS,
    'resources': part({'limits': part({'google.com/tpu': COUNT})}),
  },
  {'ports': ANY, 'securityContext': ANY},
)
POD = part(
  {
    'restartPolicy': {'const': 'Never'},  # podFailurePolicy needs it
    'nodeSelector': part(
      {
        'cloud.google.com/gke-tpu-accelerator': TEXT,
        'cloud.google.com/gke-tpu-topology': TEXT,
      }
    ),
    'containers': every(CONTAINER),
    'terminationGracePeriodSeconds': COUNT,
  },
  {
    'serviceAccountName': TEXT,
    'hostNetwork': {'type': 'boolean'},
    'dnsPolicy': {'const': 'ClusterFirstWithHostNet'},
  },
)
JOB = part(
  {
    'completionMode': {'const': 'Indexed'},
    'parallelism': COUNT,
    'completions': COUNT,
    'backoffLimit': {'const': 0},
    'podFailurePolicy': part({'rules': every(POD_RULE)}),
    'template': part({'spec': POD}),
  }
)
FAILURE_RULE = part(
  {'name': RULE_NAME, 'action': ACTION},
  {'onJobFailureReasons': TEXTS, 'onJobFailureMessagePatterns': TEXTS},
)
REPLICATED_JOB = part(
  {'name': TEXT, 'replicas': COUNT, 'template': part({'spec': JOB})}
)
# The parts of JobSet v1alpha2, and of the Job in it, that matter here. A name that is
# not in them is a mistake.
JOBSET = part(
  {
    'apiVersion': {'const': 'jobset.x-k8s.io/v1alpha2'},
    'kind': {'const': 'JobSet'},
    'metadata': part({'name': TEXT, 'annotations': {'type': 'object'}}),
    'spec': part(
      {
        'failurePolicy': part({'maxRestarts': COUNT, 'rules': every(FAILURE_RULE)}),
        'replicatedJobs': every(REPLICATED_JOB),
      }
    ),
  }
)


def dry_run(*arguments: str, **variables: str) -> str:
  """Returns what launch/gke.sh would run."""
  result = run('gke.sh', *arguments, IMAGE=IMAGE, DRY_RUN='1', **variables)
  assert not result.returncode, result.stderr
  return result.stdout


def manifest(**variables: str) -> Any:
  """Returns the JobSet of a run."""
  return yaml.safe_load(dry_run('train', *RUN, **variables))


def job_of(jobset: Any) -> Any:
  """Returns the spec of the job of a slice."""
  return jobset['spec']['replicatedJobs'][0]['template']['spec']


def container_of(jobset: Any) -> Any:
  """Returns the container of every host."""
  (container,) = job_of(jobset)['template']['spec']['containers']
  return container


def parsed(flags: list[str]) -> list[Any]:
  """Returns values of the config and the workdir, as omni_jax.train parses its flags."""
  program = (
    'import json; from omni_jax.train.__main__ import parse; config, workdir = parse(); '
    'print(json.dumps([config.distributed, config.stages, config.cpu_devices, workdir]))'
  )
  result = subprocess.run(
    [sys.executable, '-c', program, *flags],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert not result.returncode, result.stderr
  return json.loads(result.stdout)


@pytest.mark.parametrize(
  'variables', [{}, {'SLICES': '2', 'TOPOLOGY': '8x8', 'HOSTS': '16'}], ids=str
)
def test_the_manifest_is_a_jobset(variables):
  jobset = manifest(**variables)
  jsonschema.validate(jobset, JOBSET)
  slices = jobset['spec']['replicatedJobs'][0]['replicas']
  hosts = job_of(jobset)['parallelism']
  assert slices == int(variables.get('SLICES', 1))
  assert hosts == job_of(jobset)['completions'] == int(variables.get('HOSTS', 4))
  topology = job_of(jobset)['template']['spec']['nodeSelector'][
    'cloud.google.com/gke-tpu-topology'
  ]
  rows, columns = map(int, topology.split('x'))
  chips = container_of(jobset)['resources']['limits']['google.com/tpu']
  assert rows * columns == hosts * chips


@pytest.mark.parametrize(
  'right, wrong',
  [
    ('replicas:', 'replica:'),
    ('maxRestarts:', 'maxRestart:'),
    ('restartPolicy: Never', 'restartPolicy: OnFailure'),
    ('action: FailJobSet', 'action: FailJob'),
    ('google.com/tpu: 4', 'google.com/tpu: four'),
  ],
)
def test_the_schema_notices_mistakes(right, wrong):
  text = dry_run('train', *RUN)
  assert right in text
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(yaml.safe_load(text.replace(right, wrong)), JOBSET)


def test_the_command_parses_with_our_flags():
  container = container_of(manifest())
  assert container['command'] == ['python', '-m', 'omni_jax.train']
  assert parsed(container['args']) == [True, ['omni'], 1, 'gs://bucket/a b']


def action_after(jobset: Any, message: str) -> str:
  """Returns what the JobSet does after a job failed with this message."""
  for rule in jobset['spec']['failurePolicy']['rules']:
    patterns = rule['onJobFailureMessagePatterns']
    if any(re.search(pattern, message) for pattern in patterns):
      return rule['action']
  return 'RestartJobSet'


@pytest.mark.parametrize(
  'code, action',
  [
    (PREEMPTED, 'RestartJobSetAndIgnoreMaxRestarts'),
    (MISTAKE, 'FailJobSet'),
    (1, 'RestartJobSet'),
    (137, 'RestartJobSet'),
  ],
)
def test_exit_codes_decide_on_a_restart(code, action):
  """The messages are those of Kubernetes' job controller, as quoted in JobSet's KEP 262."""
  jobset = manifest()
  codes, disruption = job_of(jobset)['podFailurePolicy']['rules']
  message = 'Job has reached the specified backoff limit'
  if code in codes['onExitCodes']['values']:
    message = (
      f'Container {container_of(jobset)["name"]} for pod default/omni-slice-0-0-abcde '
      f'failed with exit code {code} matching FailJob rule at index 0'
    )
  assert action_after(jobset, message) == action
  (condition,) = disruption['onPodConditions']
  drained = (
    f'Pod default/omni-slice-0-0-abcde has condition {condition["type"]} '
    'matching FailJob rule at index 1'
  )
  assert action_after(jobset, drained) == 'RestartJobSetAndIgnoreMaxRestarts'


def test_xpk_runs_the_same_command():
  (line,) = dry_run('xpk', *RUN, CLUSTER='c', SLICES='2').splitlines()
  words = shlex.split(line)
  assert words[:3] == ['xpk', 'workload', 'create']
  flags = dict(word.split('=', 1) for word in words[3:])
  assert flags['--num-slices'] == '2'
  assert flags['--restart-on-exit-codes'] == str(PREEMPTED)
  program, python, *command = shlex.split(flags['--command'])
  assert [program, python, *command[:2]] == ['exec', 'python', '-m', 'omni_jax.train']
  assert command[2:] == container_of(manifest())['args']


def test_the_page_has_the_line_of_xpk():
  page = (ROOT / 'docs' / 'tpu.md').read_text()
  (line,) = re.findall(
    r'^xpk workload create.*?(?=```)', page, re.DOTALL | re.MULTILINE
  )
  result = run(
    'gke.sh',
    'xpk',
    'configs/omni_1b.py',
    'gs://BUCKET/omni_1b',
    IMAGE='$IMAGE',
    CLUSTER='CLUSTER',
    DRY_RUN='1',
  )
  assert shlex.split(line.replace('\\\n', ' ')) == shlex.split(result.stdout)


def test_other_commands():
  build, push = dry_run('image', EXTRAS='tpu,gs,demo').splitlines()
  assert '--build-arg=EXTRAS=tpu,gs,demo' in shlex.split(build)
  assert shlex.split(build)[-1] == str(ROOT)
  assert shlex.split(push) == ['docker', 'push', IMAGE]
  selector = ['-l', 'jobset.sigs.k8s.io/jobset-name=omni']
  logs = shlex.split(dry_run('logs', '5'))
  assert logs[:4] == ['kubectl', 'logs', *selector]
  assert '--tail=5' in logs
  assert shlex.split(dry_run('stop')) == ['kubectl', 'delete', 'jobset', 'omni']


@pytest.mark.parametrize(
  'arguments, variables',
  [
    (['train', 'c.py'], {'IMAGE': IMAGE}),
    (['image'], {}),
    (['xpk', 'c', 'w'], {'IMAGE': IMAGE}),
  ],
)
def test_mistakes_are_one_line(arguments, variables):
  result = run('gke.sh', *arguments, **variables, DRY_RUN='1')
  assert result.returncode
  assert len(result.stderr.splitlines()) == 1
  assert not result.stdout


def test_the_image_copies_what_exists_and_runs_as_a_user():
  """There is no docker here: only the instructions are read."""
  lines = (ROOT / 'Dockerfile').read_text().replace('\\\n', ' ').splitlines()
  steps = [line.split(maxsplit=1) for line in lines if line and line[0] != '#']
  let_through = (ROOT / '.dockerignore').read_text().splitlines()
  for instruction, text in steps:
    if instruction == 'COPY':
      *sources, _ = text.split()
      for source in sources:
        assert (ROOT / source).exists()
        assert f'!{source}' in let_through
  arguments = dict(steps)
  assert arguments['FROM'] == 'python:3.12-slim'
  assert arguments['USER'] != 'root'
  extras = arguments['ARG'].removeprefix('EXTRAS=').split(',')
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  assert set(extras) <= set(project['optional-dependencies'])
