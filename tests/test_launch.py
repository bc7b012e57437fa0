"""The launchers, with a stand-in for gcloud whose machines are folders."""

import copy
import fcntl
import itertools
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from kubeflow_trainer_api import models

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / 'launch').glob('*.sh'), ROOT / '.ci' / 'run'])


def write_executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_shellcheck_finds_nothing():
    shellcheck = pathlib.Path(sys.executable).parent / 'shellcheck'
    completed = subprocess.run(
        [shellcheck, '-x', '--source-path=SCRIPTDIR', *SCRIPTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (completed.returncode, completed.stdout + completed.stderr) == (0, '')
    assert len(SCRIPTS) == 10


def await_true(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def hear_control_c():
    """Restores Control-C, which processes of a shell's background job would ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# --- On this machine -------------------------------------------------------------------------------

HELPED = ('quickstart.sh', 'test.sh', 'docs.sh', 'local.sh', 'tpu_vm.sh', 'gke.sh', 'worker.sh')


def list_files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob('*') if '.git' not in path.parts)


@pytest.mark.parametrize(
    ('name', 'arguments'),
    [
        *((name, [flag]) for name in HELPED for flag in ('--help', '-h')),
        ('tpu_vm.sh', ['run', 'vit', '--help']),
        ('gke.sh', ['vit', '--spot', '-h']),
        ('local.sh', ['-n', '2', '--help', '--', '--config=c.py']),
    ],
    ids=lambda value: value if isinstance(value, str) else ' '.join(value),
)
def test_help_is_the_usage_and_nothing_else_happens(name, arguments, checkout, tmp_path):
    script = checkout / 'launch' / name
    before = list_files(checkout)
    completed = subprocess.run(
        ['bash', script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20
    )
    assert (completed.returncode, completed.stderr) == (0, '')
    shebang, *lines = script.read_text().splitlines()
    comment = list(itertools.takewhile(lambda line: line.startswith('#'), lines))
    assert shebang == '#!/usr/bin/env bash'
    assert completed.stdout.splitlines() == [line.removeprefix('#').removeprefix(' ') for line in comment]
    assert f'bash launch/{name}' in completed.stdout
    # The help names every option.
    options = re.findall(r"OPTIONS\+?='([^']*)'", script.read_text())
    for option in ' '.join(options).split():
        assert option.removesuffix('=') in completed.stdout
    assert list_files(checkout) == before


# Replaces the Python that makes .venv, and the programs in it; calls are recorded in $FOLDER/calls.
VENV = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$FOLDER/calls"
case "$*" in
  '-m venv .venv')
    mkdir -p .venv/bin
    for name in python ruff; do cp "$0" ".venv/bin/$name"; done ;;
  *--target*) mkdir .venv/libtpu ;;
  '-m pytest '*) exit "$CODE" ;;
esac
"""


@pytest.fixture
def run_in_fresh_checkout(checkout, tmp_path):
    """A function (script, ...) that runs it without .venv: (exit code, stdout, stderr, recorded calls)."""
    folder = tmp_path / 'fresh'
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns('.git'))
    write_executable(tmp_path / 'python3', VENV)

    def run(name, *arguments, code=0):
        (tmp_path / 'calls').write_text('')
        completed = subprocess.run(
            ['bash', folder / 'launch' / name, *arguments],
            env={
                **os.environ,
                'PYTHON': str(tmp_path / 'python3'),
                'FOLDER': str(tmp_path),
                'CODE': str(code),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        return (
            completed.returncode,
            completed.stdout,
            completed.stderr,
            (tmp_path / 'calls').read_text().splitlines(),
        )

    return run


PIP = 'python -m pip install --quiet --disable-pip-version-check'
RUFF = ['ruff check .', 'ruff format --check .']
PYTEST = 'python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder'


def test_quickstart_makes_the_environment_once_and_says_so(run_in_fresh_checkout):
    code, out, err, (check, *calls) = run_in_fresh_checkout('quickstart.sh')
    assert (code, err) == (0, '')
    assert out == 'Installing requirements.txt into .venv (once, a few minutes) ...\n'
    assert check.startswith('python3 -c import sys')
    train = (
        'python -m td_jax.compare --config=configs/quickstart.py --methods=ld,fitnet,rkd,td,td_ld '
        '--trials=0 --search_seeds=1 --jobs=0 --workdir='
    )
    assert calls == ['python3 -m venv .venv', f'{PIP} -r requirements.txt', f'{train}runs/quickstart']
    assert run_in_fresh_checkout('quickstart.sh', 'runs/mine') == (0, '', '', [f'{train}runs/mine'])
    for arguments in (['--workdir=runs/mine'], ['a', 'b']):
        message = f"quickstart.sh: '{' '.join(arguments)}' is no WORKDIR; write quickstart.sh WORKDIR.\n"
        assert run_in_fresh_checkout('quickstart.sh', *arguments) == (2, '', message, [])


def test_the_tests_say_how_long_they_took_and_leave_out_the_long_ones(run_in_fresh_checkout):
    code, out, err, calls = run_in_fresh_checkout('test.sh', '--setup-only')
    assert (code, err) == (0, '')
    assert out.splitlines() == [
        'Installing requirements-dev.txt into .venv (once, a few minutes) ...',
        'The environment in .venv is ready.',
    ]
    assert f'{PIP} -r requirements-dev.txt' in calls and not any('pytest' in call for call in calls)
    # The TPU compiler is installed once, too.
    assert sum('libtpu' in call for call in calls) <= 1
    took = r'The tests took \d+ min \d+ s\.'
    for arguments, expected, note in (
        ([], f'{PYTEST} -m not long', ' Without the long ones; --all runs them, too.'),
        (['tests/test_a.py', '-x'], f'{PYTEST} -m not long tests/test_a.py -x', ' Without .*'),
        (['--all'], PYTEST, ''),
        (['--all', '-k', 'b'], f'{PYTEST} -k b', ''),
    ):
        code, out, err, calls = run_in_fresh_checkout('test.sh', *arguments)
        assert (code, err, calls) == (0, '', [*RUFF, expected])
        assert re.fullmatch(f'{took}{note}\n', out)
    code, out, _, _ = run_in_fresh_checkout('test.sh', '--all', code=5)
    assert code == 5 and re.fullmatch(f'{took}\n', out)


def test_the_site_is_built_or_served(run_in_fresh_checkout):
    code, out, err, calls = run_in_fresh_checkout('docs.sh')
    assert (code, err) == (0, '')
    assert out == 'Installing requirements-docs.txt into .venv (once, a few minutes) ...\n'
    assert calls[1:] == [
        'python3 -m venv .venv',
        f'{PIP} -r requirements-docs.txt',
        'python -m mkdocs build',
    ]
    assert run_in_fresh_checkout('docs.sh', '--serve') == (0, '', '', ['python -m mkdocs serve'])
    for arguments in (['--open'], ['--serve', '8001'], ['site']):
        message = f"docs.sh: '{' '.join(arguments)}' is no option here; write docs.sh or docs.sh --serve.\n"
        assert run_in_fresh_checkout('docs.sh', *arguments) == (2, '', message, [])


def test_everything_is_tested_before_it_is_merged():
    assert (ROOT / '.ci' / 'run').read_text().splitlines()[-1] == 'exec bash launch/test.sh --all'


# --- A TPU VM --------------------------------------------------------------------------------------

# $CLOUD/queued has the state of the queued resource, $CLOUD/state that of its VM; worker N lives in worker-N.
# Lines of $CLOUD/course are the next states of the queued resource, one per query; then it is ACTIVE. Lines
# of $CLOUD/refusals are errors of `create`, of $CLOUD/deaf of `ssh` and `scp`, of $CLOUD/cut of `ssh` as it
# follows the log, and of $CLOUD/trouble of all commands but `create`, one per call.
GCLOUD = r"""#!/usr/bin/env bash
set -eu
cd "$CLOUD"
printf '%q ' "$@" >>calls
echo >>calls
[ "$1 $2" = 'compute tpus' ]
kind=$3 verb=$4 state='' queued='' place=projects/p/locations/z
shift 4

refuse() {
  echo "ERROR: (gcloud.compute.tpus.$kind.$verb) $1" >&2
  exit 1
}

refuse_by() {
  local line
  if [ -s "$1" ]; then
    read -r line <"$1"
    sed -i 1d "$1"
    refuse "$line"
  fi
}

words=() worker='' command='' force=''
for word in "$@"; do
  case $word in
    --worker=*) worker=${word#*=} ;;
    --command=*) command=${word#*=} ;;
    --force) force=1 ;;
    --*) ;;
    *) words+=("$word") ;;
  esac
done
[ "$verb" = create ] || refuse_by trouble
[ ! -e queued ] || read -r queued <queued
[ ! -e state ] || read -r state <state
case $kind,$verb in
  queued-resources,create)
    refuse_by refusals
    [ -z "$queued" ] || refuse "ALREADY_EXISTS: Resource '$place/queuedResources/${words[0]}' already exists"
    echo ACCEPTED >queued
    exit
    ;;
  queued-resources,*)
    [ -n "$queued" ] || refuse "NOT_FOUND: Resource '$place/queuedResources/${words[0]}' was not found"
    ;;
  tpu-vm,*) [ -n "$state" ] || refuse "NOT_FOUND: Resource '$place/nodes/${words[0]}' was not found" ;;
esac
case $kind,$verb in
  queued-resources,describe)
    if [ -s course ]; then
      head -n 1 course >queued
      sed -i 1d course
    else
      case $queued in ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING) echo ACTIVE >queued ;; esac
    fi
    cat queued
    if [ "$(cat queued)" = ACTIVE ] && [ -z "$state" ]; then
      for ((i = 0; i < WORKERS; i++)); do mkdir "worker-$i"; done
      echo READY >state
    fi
    ;;
  queued-resources,delete)
    case $queued,$force in
      ACCEPTED* | WAITING_FOR_RESOURCES* | SUSPENDED* | FAILED* | *,1) ;;
      *) refuse "DeleteQueuedResource is not supported when state is $queued" ;;
    esac
    rm -f queued state
    # Not removed: what ran there may still be writing.
    for ((i = 0; i < WORKERS; i++)); do
      [ ! -e "worker-$i" ] || mv "worker-$i" "$(mktemp -d deleted-XXXX)"
    done
    ;;
  tpu-vm,describe)
    echo "$state"
    case $state in REPAIRING | RESTARTING) echo READY >state ;; esac
    ;;
  tpu-vm,ssh | tpu-vm,scp)
    [[ $state = READY || $state = REPAIRING ]] || refuse "the VM is $state"
    refuse_by deaf
    [[ $command != *follow ]] || refuse_by cut
    processes=() code=0
    for ((i = 0; i < WORKERS; i++)); do
      [[ $worker = all || $worker = "$i" ]] || continue
      if [ "$verb" = scp ]; then
        cp "${words[0]}" "worker-$i/${words[1]#*:}"
      else
        (cd "worker-$i" && HOME=$PWD HOSTNAME=t1v-n-0-w-$i WORKER=$i exec bash -c "$command") &
        processes+=($!)
      fi
    done
    for process in ${processes[@]+"${processes[@]}"}; do wait "$process" || code=$?; done
    exit "$code"
    ;;
  *) refuse 'no such command' ;;
esac
"""

# The options of the gcloud commands that are used: those with a value and those without.
ANYWHERE = ({'zone', 'project', 'format'}, {'quiet'})
DOCUMENTED = {
    'queued-resources create': (
        {
            *(
                'accelerator-type',
                'topology',
                'type',
                'runtime-version',
                'node-id',
                'node-count',
                'node-prefix',
            ),
            *('data-disk', 'boot-disk', 'description', 'labels', 'metadata', 'metadata-from-file', 'network'),
            *('range', 'scopes', 'service-account', 'subnetwork', 'tags', 'valid-after-duration'),
            *('valid-after-time', 'valid-until-duration', 'valid-until-time'),
        },
        {'async', 'guaranteed', 'internal-ips', 'reserved', 'shielded-secure-boot', 'spot'},
    ),
    'queued-resources delete': (set(), {'async', 'force'}),
    'queued-resources describe': (set(), set()),
    'tpu-vm describe': (set(), set()),
    'tpu-vm ssh': (
        {'ssh-flag', 'ssh-key-file', 'strict-host-key-checking', 'worker', 'command', 'output-directory'},
        {'dry-run', 'force-key-file-overwrite', 'internal-ip', 'plain'},
    ),
    'tpu-vm scp': (
        {'scp-flag', 'ssh-key-file', 'strict-host-key-checking', 'worker'},
        {'compress', 'dry-run', 'force-key-file-overwrite', 'internal-ip', 'plain', 'recurse'},
    ),
}
# The fields of Google's REST resources that are read.
FIELDS = {
    'queued-resources describe': {'state.state', 'state.failedData.error.message'},
    'tpu-vm describe': {'state'},
}


def check_call(verb, words, options):
    """Checks a call of gcloud compute tpus against its documentation."""
    valued, switches = (known | extra for known, extra in zip(ANYWHERE, DOCUMENTED[verb], strict=True))
    for option, value in options.items():
        assert option in (switches if value is None else valued), (verb, option)
    assert options['zone'] and len(words) == (2 if verb == 'tpu-vm scp' else 1)
    if verb == 'queued-resources create':
        assert {'accelerator-type', 'runtime-version', 'node-id'} <= options.keys()
    if verb in FIELDS:
        (fields,) = re.fullmatch(r'value\((.*)\)', options['format']).groups()
        assert set(fields.split(',')) <= FIELDS[verb]


# The Python of the workers. Lines of $CLOUD/training-N are how training ends on worker N, one per call.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  '-m venv .venv') mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  '-m pip '*) test ! -s "$CLOUD/broken" || { sed -i 1d "$CLOUD/broken"; exit 1; }; echo "$*" >>"$CLOUD/pip" ;;
  '-m td_jax.main '*)
    shift 2
    ps -o sid= -p $$ >"$CLOUD/session-$WORKER.new" && mv "$CLOUD/session-$WORKER.new" "$CLOUD/session-$WORKER"
    for word in "$@"; do echo "argument $word"; done
    echo "data ${TFDS_DATA_DIR:-} ${STORAGE_EMULATOR_HOST:-}"
    end=$(head -n 1 "$CLOUD/training-$WORKER")
    sed -i 1d "$CLOUD/training-$WORKER"
    case $end in
      preempted) echo PREEMPTED >"$CLOUD/state" && echo SUSPENDED >"$CLOUD/queued" && exit 1 ;;
      REPAIRING | RESTARTING) echo "$end" >"$CLOUD/state" && exit 1 ;;
      slow) sleep 0.3; exit 0 ;;
      wait) for _ in {1..1000}; do test -e "$CLOUD/go" && exit 0; sleep 0.02; done; exit 1 ;;
      *) exit "$end" ;;
    esac ;;
esac
"""

CONFIG = ['--', '--config=configs/imagenet.py', '--config.model.patch=(3, 3)', "--config.note=it's"]
PLACE = ['--zone=us-central1-a', '--project=p']
RUN = ['run', 'vit', *PLACE, '--type=v5litepod-16', '--spot', '--workdir=gs://b/run']


@pytest.fixture(scope='session')
def checkout(tmp_path_factory):
    """A repository of one commit that holds the launchers."""
    folder = tmp_path_factory.mktemp('checkout')
    shutil.copytree(ROOT / 'launch', folder / 'launch')
    for path in ROOT.glob('requirements*.txt'):
        shutil.copy(path, folder)
    git = ['git', '-c', 'user.name=n', '-c', 'user.email=e', '-c', 'init.defaultBranch=main']
    for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'Launchers']):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


class Cloud:
    """A stand-in for a cloud with one VM of several workers, and for this machine, which has gcloud."""

    def __init__(self, folder, checkout, workers):
        self.folder, self.checkout, self.workers = folder, checkout, workers
        write_executable(folder / 'bin' / 'gcloud', GCLOUD)
        write_executable(folder / 'python', PYTHON)
        self.environment = {
            **os.environ,
            'PATH': f'{folder / "bin"}:{os.environ["PATH"]}',
            'CLOUD': str(folder),
            'WORKERS': str(workers),
            'PYTHON': str(folder / 'python'),
            'TD_JAX_PAUSE': '0',
        }

    def script(self, name, *lines):
        (self.folder / name).write_text(''.join(f'{line}\n' for line in lines))

    def trains(self, *ends):
        """Sets how training ends, call after call: equally on all workers, or with one end per worker."""
        for i in range(self.workers):
            lines = [end if isinstance(end, str) else end[i] for end in ends]
            self.script(f'training-{i}', *lines)

    def command(self, *arguments):
        return ['bash', str(self.checkout / 'launch' / 'tpu_vm.sh'), *arguments]

    def __call__(self, *arguments):
        """(exit code, stdout, stderr) of tpu_vm.sh."""
        completed = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return completed.returncode, completed.stdout, completed.stderr

    def start_until_it_trains(self):
        """Starts a launcher, and waits until it shows the log of a training that every worker has begun.

        Its output goes to the files out and err.
        """
        with open(self.folder / 'out', 'w') as out, open(self.folder / 'err', 'w') as err:
            process = subprocess.Popen(
                self.command(*RUN, *CONFIG),
                env=self.environment,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        await_true(lambda: '[0] data' in (self.folder / 'out').read_text())
        await_true(lambda: all((self.folder / f'session-{worker}').exists() for worker in range(2)))
        return process

    def calls(self):
        """[command, words, options] of each call of gcloud."""
        path = self.folder / 'calls'
        lines = path.read_text().splitlines() if path.exists() else []
        return [split_words(shlex.split(line)) for line in lines]

    def verbs(self):
        """The commands of all calls, without those that only read a state."""
        return [what.split()[1] for what, _, _ in self.calls() if what.split()[1] not in ('ssh', 'describe')]

    def log(self, worker=0):
        return (self.folder / f'worker-{worker}' / 'td_jax' / '.run' / 'log').read_text().splitlines()

    def starts(self, worker=0):
        return self.log(worker).count('argument --distributed')


@pytest.fixture
def cloud(tmp_path, checkout):
    cloud = Cloud(tmp_path, checkout, workers=2)
    yield cloud
    for call in cloud.calls():
        check_call(*call)


def split_words(words):
    """['tpu-vm ssh', words, options] of `compute tpus tpu-vm ssh ...`; options without a value have None."""
    compute, tpus, kind, verb, *words = words
    assert (compute, tpus) == ('compute', 'tpus')
    options = {}
    for word in words:
        if word.startswith('--'):
            name, equals, value = word[2:].partition('=')
            options[name] = value if equals else None
    return [f'{kind} {verb}', [word for word in words if not word.startswith('--')], options]


def get_head(checkout):
    command = ['git', 'rev-parse', 'HEAD']
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()


# Buckets, logs and metrics; cloud-platform would allow everything that the service account may do.
SCOPES = ('devstorage.full_control', 'logging.write', 'monitoring.write')


def test_run_goes_from_nothing_to_the_end_of_training(cloud, checkout):
    cloud.trains('0')
    env = ['--env=TFDS_DATA_DIR=gs://b/my data', '--env=STORAGE_EMULATOR_HOST=http://localhost:1']
    code, out, err = cloud(*RUN, *env, *CONFIG)
    assert code == 0, err
    assert cloud.verbs() == ['create', 'scp']
    (create,) = [options for what, _, options in cloud.calls() if what == 'queued-resources create']
    place = {'zone': 'us-central1-a', 'project': 'p', 'quiet': None}
    assert create == {
        'node-id': 'vit',
        'accelerator-type': 'v5litepod-16',
        'runtime-version': 'v2-alpha-tpuv5-lite',
        'spot': None,
        'scopes': ','.join(f'https://www.googleapis.com/auth/{scope}' for scope in SCOPES),
        **place,
    }
    for what, words, options in cloud.calls():
        assert place.items() <= options.items()
        assert words[-1].split(':')[0] == 'vit'
        assert what not in ('tpu-vm ssh', 'tpu-vm scp') or options['worker'] == 'all'
        # Otherwise a launcher would wait for hours for a VM that was preempted.
        assert what != 'tpu-vm ssh' or options['ssh-flag'] == '-oServerAliveInterval=20'
    for worker in range(2):
        # The address of the bucket is passed on: td_jax itself reads and writes there.
        lines = [
            'argument --distributed',
            'argument --workdir=gs://b/run',
            'argument --config=configs/imagenet.py',
            'argument --config.model.patch=(3, 3)',
            "argument --config.note=it's",
            'data gs://b/my data http://localhost:1',
        ]
        assert cloud.log(worker) == lines
        assert [line for line in out.splitlines() if line.startswith(f'[{worker}] ')] == [
            f'[{worker}] {line}' for line in lines
        ]
        assert (cloud.folder / f'worker-{worker}' / 'td_jax' / '.run' / 'commit').read_text() == (
            f'{get_head(checkout)}\n'
        )
    assert (cloud.folder / 'pip').read_text().splitlines() == [
        '-m pip install --quiet --disable-pip-version-check -r requirements-tpu.txt'
    ] * 2
    assert 'bash launch/tpu_vm.sh delete vit --zone=us-central1-a ends that' in err.splitlines()[-1]


def test_run_calls_again_what_was_told_to_stop(cloud):
    # The second time, one worker had already ended when the other was stopped.
    cloud.trains('75', ('75', '0'), 'slow')
    code, _, err = cloud(*RUN, *CONFIG)
    assert code == 0, err
    assert cloud.verbs() == ['create', 'scp']
    assert [cloud.starts(worker) for worker in range(2)] == [3, 3]
    assert err.count('training was told to stop or lost a process; calling it again') == 2
    assert 'the connection was lost' not in err


def test_run_makes_a_preempted_vm_again_and_continues(tmp_path, checkout):
    cloud = Cloud(tmp_path, checkout, workers=1)
    # As often as needed: more often than workers without an answer are retried.
    cloud.trains(*['preempted'] * 7, '75', '0')
    code, out, err = cloud(*RUN, *CONFIG)
    assert code == 0, err
    assert cloud.verbs() == ['create', 'scp', *['delete', 'create', 'scp'] * 7]
    assert err.count('vit is SUSPENDED; deleting it from the queue') == 7
    assert out.count('[0] argument --workdir=gs://b/run\n') >= 9
    # The log is that of the newest VM, on which training was started twice.
    assert cloud.starts() == 2


@pytest.mark.parametrize('state', ['REPAIRING', 'RESTARTING'])
def test_training_that_ended_with_a_vm_that_comes_back_is_called_again(state, tmp_path, checkout):
    """With a VM that still answers, so that the exit code is known, and with one that does not."""
    cloud = Cloud(tmp_path, checkout, workers=1)
    cloud.trains(state, '0')
    code, _, err = cloud(*(word for word in RUN if word != '--spot'), *CONFIG)
    assert code == 0, err
    assert (cloud.verbs(), cloud.starts()) == (['create', 'scp'], 2)


@pytest.mark.parametrize('course', [[], ['SUSPENDING', 'SUSPENDING', 'SUSPENDED']])
def test_a_queue_that_lags_behind_the_vm_is_no_trouble(course, cloud):
    cloud.script('queued', 'ACTIVE')
    cloud.script('state', 'PREEMPTED')
    cloud.script('course', *course)
    code, _, err = cloud('create', 'vit', *PLACE, '--type=v5litepod-16', '--spot')
    assert code == 0, err
    assert cloud.verbs() == ['delete', 'create']
    assert cloud('status', 'vit', *PLACE)[1].splitlines()[0] == 'vit: READY'


def test_run_ends_with_the_code_of_a_failure(cloud):
    cloud.trains(('3', '3'), ('0', '2'), ('75', '134'), '0')
    for number, expected in enumerate((3, 2, 134), start=1):
        code, _, err = cloud(*RUN, *CONFIG)
        assert code == expected
        assert f'training failed with exit code {expected}' in err
        assert 'costs money' in err
        assert cloud.starts() == number
    # A failed training is not a reason to create the VM again.
    assert cloud.verbs() == ['create', 'scp']


@pytest.mark.usefixtures('hear_control_c')
def test_run_shows_what_is_running_after_the_launcher_was_interrupted(cloud):
    cloud.trains('wait')
    process = cloud.start_until_it_trains()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert (
        'training goes on; the same command shows it again. vit costs money; '
        in (cloud.folder / 'err').read_text()
    )
    status = cloud('status', 'vit', *PLACE)[1]
    assert status.splitlines() == ['vit: READY', 'td_jax: running', 'td_jax: running']
    # Code that is running is not replaced.
    code, _, err = cloud('setup', 'vit', *PLACE)
    assert (code, err.count('Training runs; its code is left as it is.')) == (2, 2)
    before = cloud.verbs()
    for worker in range(2):
        state = cloud.folder / f'worker-{worker}' / 'td_jax' / '.run'
        # It has its own session, so it survives the end of the connection.
        session = int((cloud.folder / f'session-{worker}').read_text())
        assert session not in (process.pid, os.getsid(0))
        # The same if another commit is checked out here by now.
        (state / 'commit').write_text('another\n')
    process = cloud.start_until_it_trains()
    (cloud.folder / 'go').touch()
    assert process.wait(timeout=20) == 0
    assert cloud.verbs() == before
    assert cloud.starts() == 1
    # Another process that follows the log is not mistaken for training.
    with open(cloud.folder / 'worker-0' / 'td_jax' / '.run' / 'lock') as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert cloud('status', 'vit', *PLACE)[1].splitlines() == ['vit: READY', 'td_jax: 0', 'td_jax: 0']


def test_training_counts_as_running_when_only_what_started_it_was_killed(cloud):
    cloud.trains('wait', '0')
    process = cloud.start_until_it_trains()
    for worker in range(2):
        os.kill(int((cloud.folder / f'session-{worker}').read_text()), signal.SIGKILL)
    status = cloud('status', 'vit', *PLACE)[1]
    assert status.splitlines() == ['vit: READY', 'td_jax: running', 'td_jax: running']
    # The exit code is unknown, so training is called again.
    (cloud.folder / 'go').touch()
    assert process.wait(timeout=20) == 0
    assert cloud.starts() == 2


def test_nothing_of_an_earlier_commit_stays(cloud):
    cloud.trains('0')
    # A workdir may also be on a disk.
    code, _, err = cloud(*RUN, '--workdir=/mnt/disk/run', *CONFIG)
    assert code == 0, err
    assert [line for line in cloud.log(1) if 'workdir' in line] == ['argument --workdir=/mnt/disk/run']
    folder = cloud.folder / 'worker-0' / 'td_jax'
    (folder / 'old.py').touch()
    (folder / '.run' / 'commit').write_text('another\n')
    cloud.trains('0')
    assert cloud(*RUN, *CONFIG)[0] == 0
    assert not (folder / 'old.py').exists()
    # The environment and the log stay.
    assert (folder / '.venv' / 'bin' / 'python').exists() and cloud.starts() == 2
    assert len((cloud.folder / 'pip').read_text().splitlines()) == 2


@pytest.mark.parametrize('fails', [1, 1000])
def test_a_failed_installation_is_tried_again_and_ends_a_run_at_last(fails, cloud):
    cloud.trains('0')
    cloud.script('broken', *['x'] * fails)
    code, _, err = cloud(*RUN, *CONFIG)
    if fails == 1:
        assert code == 0, err
        # Each worker without it has tried.
        assert 2 <= err.count('installing ') <= 3
    else:
        assert code == 1
        assert 'vit does not answer or cannot be set up, as said above' in err.splitlines()[-1]
        assert 'costs money' in err.splitlines()[-1]
        assert not (cloud.folder / 'worker-0' / 'td_jax' / '.run' / 'log').exists()


def test_google_waits_for_room_and_the_launcher_for_google(cloud):
    cloud.script('course', *['WAITING_FOR_RESOURCES'] * 3, *['PROVISIONING'] * 2, 'ACTIVE')
    code, _, err = cloud('create', 'vit', *PLACE, '--type=v6e-8')
    assert code == 0, err
    assert cloud.verbs() == ['create']
    # Each is reported once.
    assert err.splitlines()[-2:] == [
        'tpu_vm.sh: vit is WAITING_FOR_RESOURCES; waiting',
        'tpu_vm.sh: vit is PROVISIONING; waiting',
    ]
    assert [what for what, _, _ in cloud.calls()][-1] == 'tpu-vm describe'
    assert [o['runtime-version'] for _, _, o in cloud.calls() if 'runtime-version' in o] == [
        'v2-alpha-tpuv6e'
    ]
    assert not any('spot' in options for _, _, options in cloud.calls())


NO_ROOM = 'There is no more capacity in the zone "z"; you can try in another zone.'
NO_QUOTA = "Quota limit 'TPUV5sLitepodPerProjectPerZone' has been exceeded."


def test_what_passes_is_waited_for(cloud):
    cloud.script('refusals', 'UNAVAILABLE: The service is currently unavailable.')
    cloud.script('course', 'WAITING_FOR_RESOURCES', f'FAILED\t{NO_ROOM}', 'WAITING_FOR_RESOURCES')
    code, _, err = cloud('create', 'vit', *PLACE, '--type=v5litepod-16')
    assert code == 0, err
    assert cloud.verbs() == ['create', 'create', 'delete', 'create']
    assert f'vit is FAILED ({NO_ROOM}); deleting it from the queue' in err


def test_a_quota_is_not_waited_for(cloud):
    cloud.script('refusals', NO_QUOTA, 'more')
    code, _, err = cloud('create', 'vit', *PLACE, '--type=v5litepod-16', '--version=v2-mine')
    assert code == 1
    assert 'Quota limit' in err.splitlines()[-1]
    ((_, _, options),) = [call for call in cloud.calls() if call[0] == 'queued-resources create']
    assert options['runtime-version'] == 'v2-mine'


@pytest.mark.parametrize('reason', [NO_QUOTA, ''])
def test_a_request_that_failed_leaves_nothing_in_the_way(reason, cloud):
    cloud.script('course', f'FAILED\t{reason}')
    code, _, err = cloud('create', 'vit', *PLACE, '--type=v5litepod-16')
    assert code == 1
    reason = f' ({reason})' if reason else ''
    assert err.splitlines()[-1] == f'tpu_vm.sh: vit is FAILED{reason}; deleting it from the queue'
    assert cloud('create', 'vit', *PLACE, '--type=v5litepod-16')[0] == 0
    assert cloud.verbs() == ['create', 'delete', 'create']


@pytest.mark.usefixtures('hear_control_c')
def test_control_c_leaves_the_place_in_the_queue_and_says_so(cloud):
    cloud.script('course', *['WAITING_FOR_RESOURCES'] * 10000)
    with open(cloud.folder / 'err', 'w') as err:
        process = subprocess.Popen(
            cloud.command(*RUN, *CONFIG), env=cloud.environment, stderr=err, start_new_session=True
        )
    await_true(lambda: 'waiting' in (cloud.folder / 'err').read_text())
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert (cloud.folder / 'err').read_text().splitlines()[-1] == (
        'tpu_vm.sh: vit stays in the queue, and once it is made it costs money; '
        'bash launch/tpu_vm.sh delete vit --zone=us-central1-a ends that'
    )


def test_create_finds_what_is_there(cloud):
    for worker in range(2):
        (cloud.folder / f'worker-{worker}').mkdir()
    cloud.script('queued', 'ACTIVE')
    for state, verbs in (('READY', []), ('TERMINATED', ['delete', 'create'])):
        (cloud.folder / 'calls').unlink(missing_ok=True)
        cloud.script('state', state)
        assert cloud('create', 'vit', *PLACE, '--type=v5litepod-16')[0] == 0
        assert cloud.verbs() == verbs
    cloud.script('state', 'STOPPED')
    code, _, err = cloud('create', 'vit', *PLACE, '--type=v5litepod-16')
    assert (code, 'vit is STOPPED; start it with gcloud, or delete it' in err) == (1, True)


def test_errors_of_gcloud_are_reported_in_its_own_words(cloud):
    cloud.script('trouble', *['You do not currently have an active account selected.'] * 5)
    code, _, err = cloud('status', 'vit', *PLACE)
    assert code == 1
    assert err.endswith('You do not currently have an active account selected.\n')
    assert len(cloud.calls()) == 5


def test_a_moment_without_the_cloud_does_not_end_a_run(cloud):
    cloud.trains('0')
    assert cloud('create', 'vit', *PLACE, '--type=v5litepod-16')[0] == 0
    cloud.script('trouble', *['UNAVAILABLE: try later'] * 3)
    code, _, err = cloud(*RUN, *CONFIG)
    assert code == 0, err
    assert 'create' not in cloud.verbs()[1:]


def test_workers_that_cannot_be_reached_end_a_run(cloud):
    assert cloud('create', 'vit', *PLACE, '--type=v5litepod-16')[0] == 0
    cloud.script('deaf', *['Permission denied (publickey).'] * 100)
    code, _, err = cloud(*RUN, *CONFIG)
    assert code == 1
    assert 'Permission denied (publickey).' in err
    assert (
        'vit does not answer or cannot be set up, as said above; it still costs money' in err.splitlines()[-1]
    )
    # Nothing is sent to unreachable workers, and training does not start on a partly set-up VM.
    assert cloud.verbs() == ['create']
    assert not any('worker.sh start' in options.get('command', '') for _, _, options in cloud.calls())


def test_a_log_that_is_cut_off_is_followed_again(cloud):
    cloud.trains('wait')
    cloud.script('cut', *['Connection reset by peer'] * 2)
    process = cloud.start_until_it_trains()
    (cloud.folder / 'go').touch()
    assert process.wait(timeout=20) == 0
    err = (cloud.folder / 'err').read_text()
    assert err.count('the connection was lost; training goes on') == 2
    # Training that ends meanwhile is not started again.
    commands = [options.get('command', '') for _, _, options in cloud.calls()]
    assert sum('worker.sh start' in command for command in commands) == 1


@pytest.mark.parametrize('lines', [5, 1000])
def test_training_goes_on_while_workers_cannot_be_reached(lines, cloud):
    cloud.trains('wait', '0')
    process = cloud.start_until_it_trains()
    cloud.script('deaf', *['Connection timed out'] * lines)
    (cloud.folder / 'go').touch()
    code = process.wait(timeout=20)
    err = (cloud.folder / 'err').read_text()
    if lines == 5:
        assert code == 0, err
        # Training that ends meanwhile is not started again.
        assert cloud.starts() == 1
    else:
        assert code == 1
        assert 'vit does not answer or cannot be set up, as said above; it still costs money' in err
        (cloud.folder / 'deaf').unlink()
        assert cloud(*RUN, *CONFIG)[0] == 0
    assert cloud.verbs() == ['create', 'scp']


def test_logs_of_one_worker(cloud):
    cloud.trains(('0', '1'))
    assert cloud(*RUN, *CONFIG)[0] == 1
    code, out, _ = cloud('logs', 'vit', *PLACE, '--worker=1')
    assert code == 0
    assert out.splitlines() == [f'[1] {line}' for line in cloud.log(1)]
    code, out, _ = cloud('logs', 'vit', *PLACE)
    assert [line for line in out.splitlines() if line.startswith('[0]')]


def test_delete(cloud):
    assert cloud('create', 'vit', *PLACE, '--type=v5litepod-16')[0] == 0
    assert cloud('delete', 'vit', *PLACE)[0] == 0
    assert not (cloud.folder / 'queued').exists()
    code, _, err = cloud('delete', 'vit', *PLACE)
    assert (code, 'NOT_FOUND' in err, len(err.splitlines())) == (1, True, 1)
    assert cloud.verbs() == ['create', 'delete', 'delete']
    assert cloud('status', 'vit', *PLACE)[1] == 'vit: missing\n'


LOOK, ASK, DROP = (f'queued-resources {verb}' for verb in ('describe', 'create', 'delete'))
COPY, DO = 'tpu-vm scp', 'tpu-vm ssh'


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        ([*RUN, '--dry_run', *CONFIG], [LOOK, ASK, COPY, DO, DO, DO, DO]),
        (['create', 'vit', *PLACE, '--type=v4-8', '--dry_run'], [LOOK, ASK]),
        (['setup', 'vit', *PLACE, '--dry_run'], [COPY, DO]),
        (['logs', 'vit', *PLACE, '--dry_run'], [DO]),
        (['status', 'vit', *PLACE, '--dry_run'], [LOOK, DO]),
        (['delete', 'vit', *PLACE, '--dry_run'], [DROP]),
    ],
    ids=lambda value: value[0] if value[0] != 'run' else f'run{len(value)}',
)
def test_dry_run_prints_the_commands_and_runs_none(arguments, expected, cloud):
    code, out, err = cloud(*arguments)
    assert code == 0, err
    assert cloud.calls() == []
    commands = [shlex.split(line) for line in out.splitlines()]
    calls = [split_words(command[1:]) for command in commands if command[0] == 'gcloud']
    assert [what for what, _, _ in calls] == expected
    for call in calls:
        check_call(*call)
    # Only the archive of the code is left.
    others = [command[:2] for command in commands if command[0] != 'gcloud']
    assert others == [['git', 'archive']] * expected.count(COPY)


def test_dry_run_prints_what_run_does(cloud):
    cloud.trains('0')
    _, out, _ = cloud(*RUN, '--dry_run', *CONFIG)
    cloud(*RUN, *CONFIG)
    printed = [split_words(shlex.split(line)[1:]) for line in out.splitlines() if line.startswith('gcloud')]
    calls = [call for call in cloud.calls() if ' ready ' not in call[2].get('command', '')]
    # In addition it reads the states of the queued resource and of the VM, and the commit.
    assert [calls.pop(2)[0], calls.pop(2)[0]] == [LOOK, 'tpu-vm describe']
    for call in (*printed, *calls):
        # The archive lies in another folder each time.
        call[1] = [pathlib.Path(word).name for word in call[1]]
    assert printed == calls


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], "'' is not something to do; say create, setup, run, logs, status or delete, then NAME."),
        (['start', 'vit'], "'start' is not something to do; say create, setup, run, logs, status or delete"),
        (['run'], "NAME is ''; use up to 40 lowercase letters, digits and dashes"),
        (['run', 'Vit', *PLACE], "NAME is 'Vit'; use up to 40 lowercase letters, digits and dashes"),
        (['run', 'vit', 'b', *PLACE], 'b is one word too many; flags of td_jax.main go after --.'),
        (['run', 'vit'], '--zone is missing; write --zone=ZONE'),
        (['run', 'vit', *PLACE], '--type= is no TPU type; write --type=v5litepod-N or v6e-N'),
        (
            ['create', 'vit', *PLACE, '--type=v5litepod-3'],
            '--type=v5litepod-3 is no TPU type; write --type=v5litepod-N',
        ),
        (['create', 'vit', *PLACE, '--type=a100'], '--type=a100 is no TPU type; write --type=v5litepod-N'),
        (['create', 'vit', *PLACE, '--type=v4-9'], '--type=v4-9 is no TPU type'),
        (['create', 'vit', *PLACE, '--type', '--spot'], '--type has no value; write --type=VALUE.'),
        (['create', 'vit', *PLACE, '--type='], '--type has no value; write --type=VALUE.'),
        (['create', 'vit', '--zone'], '--zone has no value; write --zone=VALUE.'),
        ([*RUN, '--spot=yes', *CONFIG], '--spot takes no value; write --spot alone.'),
        ([*RUN, '--config=c.py'], '--config is not an option here; known are --zone= --project= --dry'),
        ([*RUN[:-1], *CONFIG], '--workdir= would be lost with the VM; write --workdir=gs://BUCKET/RUN'),
        (
            [*RUN, '--workdir=runs/a', *CONFIG],
            '--workdir=runs/a would be lost with the VM; write --workdir=gs://BUCKET/RUN, or the full path',
        ),
        (
            [*RUN, '--workdir=gs://', *CONFIG],
            '--workdir=gs:// would be lost with the VM; write --workdir=gs:',
        ),
        (RUN, '--config is missing; end with -- --config=configs/FILE.py.'),
        ([*RUN, *CONFIG, '--workdir=a'], "--workdir after -- is the launcher's to give; leave it out there."),
        (
            [*RUN, *CONFIG, '--distributed'],
            "--distributed after -- is the launcher's to give; leave it out there.",
        ),
        ([*RUN, '--env=A', *CONFIG], '--env=A is no variable; write --env=NAME=VALUE.'),
        # An option without effect is refused.
        ([*RUN, '--worker=1', *CONFIG], '--worker is not an option here; known are --zone= --project= --dry'),
        (
            ['setup', 'vit', *PLACE, '--env=A=b'],
            '--env is not an option here; known are --zone= --project= --dry',
        ),
        (
            ['delete', 'vit', *PLACE, '--spot'],
            '--spot is not an option here; known are --zone= --project= --dry',
        ),
        (['delete', 'vit', *PLACE, *CONFIG], 'what follows -- is for run; leave it out of delete.'),
    ],
)
def test_bad_use_of_tpu_vm_is_one_line(arguments, message, cloud):
    code, out, err = cloud(*arguments)
    assert (code, out) == (2, '')
    (line,) = err.splitlines()
    assert line.startswith(f'tpu_vm.sh: {message}')
    assert cloud.calls() == []


def test_without_gcloud_or_a_repository_it_says_so(cloud, checkout, tmp_path):
    tools = tmp_path / 'tools'
    tools.mkdir()
    for tool in ('bash', 'dirname', 'git', 'mktemp', 'rm'):
        (tools / tool).symlink_to(shutil.which(tool))
    cloud.environment['PATH'] = str(tools)
    assert cloud(*RUN, *CONFIG)[::2] == (2, 'tpu_vm.sh: gcloud is not installed; see docs/cloud.md.\n')
    shutil.copytree(checkout / 'launch', tmp_path / 'unpacked' / 'launch')
    cloud.checkout = tmp_path / 'unpacked'
    code, _, err = cloud(*RUN, '--dry_run', *CONFIG)
    assert (code, 'this folder is no git repository' in err) == (2, True)


def test_no_launcher_asks_for_everything_that_an_account_may_do():
    for path in (ROOT / 'launch').iterdir():
        assert 'auth/cloud-platform' not in path.read_text(), path


def test_a_bucket_is_read_with_a_scope_that_the_vm_has():
    """A VM gets no token for a scope that it does not have."""
    # In a process of its own: gcsfs reads when it is imported what the tests of buckets set for their server.
    program = "import gcsfs; print(gcsfs.GCSFileSystem(token='anon').credentials.scope)"
    output = subprocess.check_output([sys.executable, '-c', program], text=True)
    assert output == f'https://www.googleapis.com/auth/{SCOPES[0]}\n'


# --- Several processes on one machine --------------------------------------------------------------

# Lines of $FOLDER/ends-N are what process N does, one per call.
TRAINING = """#!/usr/bin/env bash
idle() { for _ in {1..1000}; do sleep 0.02; done; }
for word in "$@"; do case $word in --process_id=*) id=${word#*=} ;; esac; done
echo "$@" >>"$FOLDER/arguments-$id"
end=$(head -n 1 "$FOLDER/ends-$id")
sed -i 1d "$FOLDER/ends-$id"
echo "out of $id"
echo "err of $id" >&2
case $end in
  wait) trap 'exit 75' TERM; trap 'exit 130' INT; touch "$FOLDER/waits-$id"; idle ;;
  early) touch "$FOLDER/waits-$id"; idle ;;
  stubborn) trap '' TERM INT; touch "$FOLDER/waits-$id"; idle ;;
  after) until test -e "$FOLDER/waits-0"; do sleep 0.02; done; exit 7 ;;
  *) exit "$end" ;;
esac
"""


class Local:
    def __init__(self, folder):
        self.folder = folder
        write_executable(folder / 'python', TRAINING)
        self.environment = {
            **os.environ,
            'PYTHON': str(folder / 'python'),
            'FOLDER': str(folder),
        }

    def does(self, *processes):
        """Sets what each process does, call after call."""
        for i, ends in enumerate(processes):
            (self.folder / f'ends-{i}').write_text(''.join(f'{end}\n' for end in ends))

    def start(self, *arguments):
        return subprocess.Popen(
            ['bash', ROOT / 'launch' / 'local.sh', *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=20)
        return process.returncode, out, err

    def arguments(self, process):
        return [line.split() for line in (self.folder / f'arguments-{process}').read_text().splitlines()]

    def await_all(self, count):
        await_true(lambda: all((self.folder / f'waits-{i}').exists() for i in range(count)))


@pytest.fixture
def local(tmp_path):
    return Local(tmp_path)


FLAGS = ['--', '--config=configs/digits.py', '--workdir=runs/x']


def test_local_starts_processes_that_find_each_other(local):
    local.does(['0'], ['0'], ['0'])
    code, out, err = local('-n', '3', *FLAGS)
    assert (code, err) == (0, '')
    assert sorted(out.splitlines()) == sorted(f'[{i}] {s} of {i}' for i in range(3) for s in ('out', 'err'))
    ports = set()
    for i in range(3):
        ((*module, coordinator, number, process, config, folder),) = local.arguments(i)
        assert module == ['-m', 'td_jax.main']
        assert (number, process) == ('--num_processes=3', f'--process_id={i}')
        assert (config, folder) == tuple(FLAGS[1:])
        ports.add(re.fullmatch(r'--coordinator=localhost:(\d+)', coordinator)[1])
    (port,) = ports
    assert 1024 < int(port) < 65536


@pytest.mark.parametrize(
    ('ends', 'expected'),
    [(['75', '75'], 75), (['75', '0'], 75), (['75', '3'], 3), (['7', '75'], 7), (['0', '0'], 0)],
)
def test_local_ends_with_the_code_of_a_failure(ends, expected, local):
    local.does(*([end] for end in ends))
    assert local('-n', '2', *FLAGS)[0] == expected


@pytest.mark.parametrize('other', ['wait', 'early'])
def test_local_ends_the_others_when_one_fails(other, local):
    """The exit code is that of the failure, not of a process that SIGTERM ended."""
    local.does([other], ['after'])
    code, _, _ = local('-n', '2', '--restart', *FLAGS)
    assert code == 7
    assert len(local.arguments(0)) == 1


def test_local_calls_again_only_when_asked(local):
    local.does(['75', '75', '0'], ['75', '75', '0'])
    code, out, err = local('-n', '2', '--restart', *FLAGS)
    assert (code, len(local.arguments(0)), out.count('[1] out of 1')) == (0, 3, 3)
    assert err.splitlines() == ['local.sh: training was told to stop or lost a process; calling it again'] * 2
    local.does(['75', '0'], ['75', '0'])
    assert local('-n', '2', *FLAGS)[0] == 75


@pytest.mark.usefixtures('hear_control_c')
@pytest.mark.parametrize(('number', 'expected'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_local_hands_on_a_signal_and_stops(number, expected, local):
    local.does(['wait', '0'], ['wait', '0'])
    process = local.start('-n', '2', '--restart', *FLAGS)
    local.await_all(2)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == expected
    assert len(local.arguments(0)) == 1


def test_a_second_signal_kills(local):
    local.does(['stubborn'], ['stubborn'])
    process = local.start('-n', '2', *FLAGS)
    local.await_all(2)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (FLAGS, "-n '' is no number of processes; write -n 2 for two."),
        (['-n', 'two', *FLAGS], "-n 'two' is no number of processes; write -n 2 for two."),
        (['-n', '0', *FLAGS], "-n '0' is no number of processes"),
        (['-n'], '-n has no value; write -n=VALUE.'),
        (['-n', '2', '--workdir=x', *FLAGS], '--workdir is not an option here; known are -n= --restart'),
        (['-n', '2', 'x', *FLAGS], 'x is one word too many; flags of td_jax.main go after --.'),
        (['-n', '2'], '--config is missing; end with -- --config=configs/FILE.py.'),
        (['-n', '2', *FLAGS, '--process_id=1'], "--process_id after -- is the launcher's to give"),
    ],
)
def test_bad_use_of_local_is_one_line(arguments, message, local):
    code, out, err = local(*arguments)
    assert (code, out) == (2, '')
    (line,) = err.splitlines()
    assert line.startswith(f'local.sh: {message}')
    assert not list(local.folder.glob('arguments-*'))


def test_local_without_an_environment_says_so(local):
    local.environment['PYTHON'] = 'none/python'
    assert local('-n', '2', *FLAGS)[::2] == (
        2,
        'local.sh: none/python is missing; run bash launch/test.sh --setup-only, or set PYTHON.\n',
    )


# --- Kubernetes ------------------------------------------------------------------------------------

POD = ['vit', '--type=v5litepod-16', '--image=images.example/td_jax:1', '--workdir=gs://b/run']


def run_gke(*arguments, environment=None):
    return subprocess.run(
        ['bash', ROOT / 'launch' / 'gke.sh', *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def make_manifest(*arguments):
    completed = run_gke(*arguments)
    assert completed.returncode == 0, completed.stderr
    return yaml.safe_load(completed.stdout)


def get_parts(jobset):
    """(job spec, pod spec, container) of a Job, or of the only job of a JobSet."""
    job = jobset['spec']
    if jobset['kind'] == 'JobSet':
        (replicated,) = job['replicatedJobs']
        job = replicated['template']['spec']
    pod = job['template']['spec']
    (container,) = pod['containers']
    return job, pod, container


TYPES = {
    'JobSet': ('jobset.x-k8s.io/v1alpha2', models.JobsetV1alpha2JobSet),
    'Job': ('batch/v1', models.IoK8sApiBatchV1Job),
}


def check_manifest(jobset):
    """Checks a JobSet or a Job against the published API types, down to the containers."""
    jobset = copy.deepcopy(jobset)
    resources = get_parts(jobset)[2].pop('resources')
    # The types do not parse quantities. A limit is also the request.
    assert resources.keys() == {'limits'}
    (amount,) = resources['limits'].items()
    assert amount[0] == 'google.com/tpu' and re.fullmatch('[1-9]', amount[1])
    version, kind = TYPES[jobset['kind']]
    model = kind.model_validate(jobset)
    # Unknown fields are not parsed, so they would be missing here.
    assert model.model_dump(by_alias=True, exclude_unset=True) == jobset
    # Rules for strings that the API server checks and the types do not.
    assert jobset['apiVersion'] == version
    job, pod, _ = get_parts(jobset)
    assert job['completionMode'] in ('Indexed', 'NonIndexed')
    assert pod['restartPolicy'] == 'Never'  # A podFailurePolicy allows nothing else.
    for rule in job['podFailurePolicy']['rules']:
        assert rule['action'] in ('FailJob', 'FailIndex', 'Ignore', 'Count')
        assert ('onExitCodes' in rule) != ('onPodConditions' in rule)
        if 'onExitCodes' in rule:
            assert rule['onExitCodes']['operator'] in ('In', 'NotIn')
            assert 0 not in rule['onExitCodes']['values']
            assert rule['onExitCodes']['values'] == sorted(set(rule['onExitCodes']['values']))
            assert rule['onExitCodes']['containerName'] in [c['name'] for c in pod['containers']]
        # FailIndex is only for an Indexed Job with a limit per index.
        assert rule['action'] != 'FailIndex' or job['backoffLimitPerIndex'] >= 0
    if jobset['kind'] == 'Job':
        return
    actions = ('FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts')
    reasons = ('BackoffLimitExceeded', 'DeadlineExceeded', 'FailedIndexes', 'MaxFailedIndexesExceeded')
    for rule in jobset['spec']['failurePolicy']['rules']:
        assert rule['action'] in actions
        assert re.fullmatch(r'[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name'])
        assert set(rule['onJobFailureReasons']) <= {*reasons, 'PodFailurePolicy'}


ALL = ['--spot', '--service_account=trainer', '--env=A=b', '--max_restarts=0']


@pytest.mark.parametrize('options', [[], *([option] for option in ALL), ALL], ids=len)
def test_the_manifest_is_a_jobset(options):
    check_manifest(make_manifest(*POD, *options, *CONFIG))


@pytest.mark.parametrize(
    'damage',
    [
        lambda jobset: jobset['spec'].update(failurepolicy={}),
        lambda jobset: jobset['spec']['failurePolicy'].update(maxRestarts='3'),
        lambda jobset: jobset['spec']['failurePolicy']['rules'][0].pop('action'),
        lambda jobset: get_parts(jobset)[0].update(completions='4'),
        lambda jobset: get_parts(jobset)[1].update(nodeSelectors={}),
        lambda jobset: get_parts(jobset)[1]['tolerations'][0].update(efect='NoSchedule'),
        lambda jobset: get_parts(jobset)[2].pop('name'),
        lambda jobset: get_parts(jobset)[2].update(args='--distributed'),
        lambda jobset: get_parts(jobset)[2]['env'][0].update(value=1),
        lambda jobset: get_parts(jobset)[0]['podFailurePolicy']['rules'][0]['onExitCodes'].update(
            values=[75, 0]
        ),
    ],
)
def test_a_damaged_manifest_would_be_noticed(damage):
    jobset = make_manifest(*POD, '--spot', *CONFIG)
    damage(jobset)
    with pytest.raises((ValueError, AssertionError)):
        check_manifest(jobset)


def decide_outcome(jobset, *, code=None, disrupted=False):
    """What a JobSet does when its first pod fails in this way, by the rules of Jobs and JobSets."""
    job, _, _ = get_parts(jobset)
    reason = 'BackoffLimitExceeded'
    assert job['backoffLimit'] == 0
    for rule in job['podFailurePolicy']['rules']:
        codes = rule.get('onExitCodes', {'values': []})['values']
        conditions = [c['type'] for c in rule.get('onPodConditions', []) if c['status'] == 'True']
        if code in codes or (disrupted and 'DisruptionTarget' in conditions):
            assert rule['action'] == 'FailJob'
            reason = 'PodFailurePolicy'
            break
    for rule in jobset['spec']['failurePolicy']['rules']:
        if reason in rule['onJobFailureReasons']:
            return rule['action']
    return 'RestartJobSet'


def test_only_failures_count_as_failures():
    jobset = make_manifest(*POD, '--max_restarts=5', *CONFIG)
    assert jobset['spec']['failurePolicy']['maxRestarts'] == 5
    assert decide_outcome(jobset, code=75) == 'RestartJobSetAndIgnoreMaxRestarts'
    assert decide_outcome(jobset, code=137, disrupted=True) == 'RestartJobSetAndIgnoreMaxRestarts'
    for code in (1, 2, 134, 137):
        assert decide_outcome(jobset, code=code) == 'RestartJobSet'


def test_the_pods_run_what_the_command_line_says():
    env = 'TFDS_DATA_DIR=gs://b/"my" \\data $(HOME)'
    jobset = make_manifest(*POD, '--spot', f'--env={env}', '--env=NO=1', *CONFIG)
    job, pod, container = get_parts(jobset)
    assert jobset['metadata']['name'] == 'vit'
    assert (job['completions'], job['parallelism'], job['completionMode']) == (4, 4, 'Indexed')
    assert container['image'] == 'images.example/td_jax:1'
    assert container['command'] == ['.venv/bin/python', '-m', 'td_jax.main']
    assert container['args'] == ['--distributed', '--workdir=gs://b/run', *CONFIG[1:]]
    # Kubernetes reads $$( as $(.
    assert {variable['name']: variable['value'] for variable in container['env']} == {
        'PYTHONUNBUFFERED': '1',
        'TFDS_DATA_DIR': 'gs://b/"my" \\data $$(HOME)',
        'NO': '1',
    }
    assert pod['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
        'cloud.google.com/gke-tpu-topology': '4x4',
        'cloud.google.com/gke-spot': 'true',
    }
    assert 'cloud.google.com/gke-spot' not in get_parts(make_manifest(*POD, *CONFIG))[1]['nodeSelector']


@pytest.mark.parametrize(
    ('workdir', 'path'),
    [('gs://b', 'gs://b'), ('gs://b/', 'gs://b/'), ('gs://b/a/"b$(c)', 'gs://b/a/"b$$(c)')],
)
def test_the_pods_are_told_the_bucket_and_mount_nothing(workdir, path):
    jobset = make_manifest(*POD, f'--workdir={workdir}', *CONFIG)
    check_manifest(jobset)
    _, pod, container = get_parts(jobset)
    assert container['args'][1] == f'--workdir={path}'
    assert 'volumes' not in pod and 'volumeMounts' not in container


def test_the_pods_have_the_account_that_is_asked_for():
    jobset = make_manifest(*POD, *CONFIG)
    assert 'serviceAccountName' not in get_parts(jobset)[1]
    jobset = make_manifest(*POD, '--service_account=t', *CONFIG)
    assert get_parts(jobset)[1]['serviceAccountName'] == 't'


WORKERS = ['t4', '--type=v5litepod-8', *POD[2:], '--shards=10', '--command=reproduce']


@pytest.mark.parametrize('options', [[], ALL], ids=len)
def test_several_workers_are_an_indexed_job(options):
    job_manifest = make_manifest(*WORKERS, *options, '--', '--tables=4', '--datasets=CIFAR10')
    check_manifest(job_manifest)
    job, pod, container = get_parts(job_manifest)
    assert (job_manifest['kind'], job_manifest['metadata']) == ('Job', {'name': 't4'})
    assert (job['completions'], job['parallelism'], job['completionMode']) == (10, 10, 'Indexed')
    assert job['backoffLimitPerIndex'] == (0 if options else 3)
    assert container['command'] == ['.venv/bin/python', '-m', 'td_jax.reproduce']
    assert container['args'] == [
        '--shard=auto/10',
        '--workdir=gs://b/run',
        '--tables=4',
        '--datasets=CIFAR10',
    ]
    # The rest is as in a JobSet.
    slice_pod = get_parts(make_manifest(*POD, *WORKERS[1:2], *options, *CONFIG))[1]
    for pod_spec in (pod, slice_pod):
        del pod_spec['containers'][0]['args'], pod_spec['containers'][0]['command']
    assert pod == slice_pod
    # A preempted worker does not count; invalid input is not tried again.
    rules = job['podFailurePolicy']['rules']
    assert [(rule['action'], rule.get('onExitCodes', {}).get('values')) for rule in rules] == [
        ('FailIndex', [2]),
        ('Ignore', None),
    ]
    assert rules[1]['onPodConditions'] == [{'type': 'DisruptionTarget', 'status': 'True'}]


TWO = [1, 4, 8, 16, 32, 64, 128, 256]
THREE = [8, 16, 32, 64, 128, 256, 512, 1024]


@pytest.mark.parametrize(
    ('family', 'sizes', 'cores', 'accelerator'),
    [
        ('v5litepod', TWO, 1, 'tpu-v5-lite-podslice'),
        ('v6e', TWO, 1, 'tpu-v6e-slice'),
        ('v5p', THREE, 2, 'tpu-v5p-slice'),
        ('v4', THREE, 2, 'tpu-v4-podslice'),
    ],
)
def test_slices_add_up(family, sizes, cores, accelerator):
    for size in sizes:
        job, pod, container = get_parts(make_manifest(*POD, f'--type={family}-{size}', *CONFIG))
        shape = [int(side) for side in pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')]
        chips = int(container['resources']['limits']['google.com/tpu'])
        assert pod['nodeSelector']['cloud.google.com/gke-tpu-accelerator'] == accelerator
        assert math.prod(shape) == size // cores == job['completions'] * chips
        assert len(shape) == cores + 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (CONFIG, "NAME is ''; use up to 40 lowercase letters"),
        ([*POD, 'b', *CONFIG], 'b is one word too many; flags of td_jax.main go after --.'),
        (['v' * 41, *POD[1:], *CONFIG], f"NAME is '{'v' * 41}'; use up to 40 lowercase letters"),
        (['vit', *POD[2:], *CONFIG], '--type= is no TPU type; write --type=v5litepod-N'),
        ([*POD, '--type=v6e-2', *CONFIG], '--type=v6e-2 is no TPU type; write --type=v5litepod-N or v6e-N'),
        (['vit', POD[1], POD[3], *CONFIG], '--image is missing; build one with launch/Dockerfile'),
        (
            [*POD[:-1], *CONFIG],
            '--workdir= would be lost with the pod; write --workdir=gs://BUCKET/RUN before',
        ),
        ([*POD[:-1], '--workdir=gs:///a', *CONFIG], '--workdir=gs:///a would be lost with the pod; write --'),
        (
            [*POD[:-1], '--workdir=/mnt/a', *CONFIG],
            '--workdir=/mnt/a would be lost with the pod; write --wor',
        ),
        ([*POD, '--max_restarts=many', *CONFIG], '--max_restarts=many is no number'),
        ([*POD, '--zone=z', *CONFIG], '--zone is not an option here; known are --type= --image= --workdir='),
        (
            [*POD, '--env=A=b\nc', *CONFIG],
            '--env=A=b... has a line break or the like; leave it out.',
        ),
        ([*POD, '--shards=2', *CONFIG], '--type=v5litepod-16 has 4 machines, but each of --shards is on one'),
        ([*WORKERS, '--shards=0', *CONFIG], '--shards=0 is no number of workers; write --shards=10.'),
        ([*WORKERS, '--command=main', *CONFIG], '--command=main with --shards=10; write --shards=N with'),
        ([*POD, '--command=tune', *CONFIG], '--command=tune with --shards=; write --shards=N with'),
        ([*WORKERS, '--', '--shard=1/2'], "--shard after -- is the launcher's to give"),
        ([*POD, *CONFIG, '--workdir=a'], "--workdir after -- is the launcher's to give"),
        (POD, '--config is missing; end with -- --config=configs/FILE.py.'),
    ],
)
def test_bad_use_of_gke_is_one_line(arguments, message):
    completed = run_gke(*arguments)
    assert (completed.returncode, completed.stdout) == (2, '')
    (line,) = completed.stderr.splitlines()
    assert line.startswith(f'gke.sh: {message}')


# --- SkyPilot --------------------------------------------------------------------------------------


def test_the_task_of_skypilot_trains_as_the_other_launchers_do(checkout, tmp_path):
    """Its fields were held against SkyPilot's own schema once; docs/cloud.md says with which version."""
    task = yaml.safe_load((ROOT / 'launch' / 'skypilot.yaml').read_text())
    assert task.keys() == {'name', 'workdir', 'resources', 'envs', 'setup', 'run'}
    assert task['resources'].keys() == {
        *('infra', 'accelerators', 'accelerator_args', 'use_spot', 'job_recovery'),
    }
    # The launchers use the same name and the same table.
    cloud_type = task['resources']['accelerators'].removeprefix('tpu-')
    script = f'source launch/common.sh; type={cloud_type}; check_type; echo "$RUNTIME"'
    runtime = subprocess.run(
        ['bash', '-c', script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert task['resources']['accelerator_args'] == {'runtime_version': runtime.strip()}
    # 75 is "call me again".
    assert task['resources']['job_recovery'] == {'recover_on_exit_codes': [75]}
    # A variable without a value is required; the documentation sets it.
    documentation = (ROOT / 'docs' / 'cloud.md').read_text()
    (documented_flags,) = re.findall(r'sky jobs launch launch/skypilot.yaml (.*)', documentation)
    missing = {name for name, value in task['envs'].items() if value is None}
    assert (
        missing == {word.split('=')[1] for word in documented_flags.split()} == {'WORKDIR', 'TFDS_DATA_DIR'}
    )
    assert (ROOT / task['envs']['CONFIG']).exists()
    folder = shutil.copytree(checkout, tmp_path / 'copy')
    write_executable(tmp_path / 'python3', VENV)
    environment = {**os.environ, 'PYTHON': str(tmp_path / 'python3'), 'FOLDER': str(tmp_path)}
    environment |= task['envs'] | {'WORKDIR': 'gs://b/a run', 'TFDS_DATA_DIR': 'gs://b/tfds'}
    for part in ('setup', 'run'):
        subprocess.run(['bash', '-c', task[part]], cwd=folder, env=environment, check=True)
    assert (tmp_path / 'calls').read_text().splitlines()[-2:] == [
        f'{PIP} -r requirements-tpu.txt',
        'python -m td_jax.main --distributed --config=configs/vit_imagenet.py --workdir=gs://b/a run',
    ]


def test_the_pool_of_skypilot_runs_the_shards(checkout, tmp_path):
    """The fields were held against SkyPilot's own schema once; docs/cloud.md says with which version."""
    pool, job, slice_task = (
        yaml.safe_load((ROOT / 'launch' / f'skypilot{name}.yaml').read_text())
        for name in ('_pool', '_shards', '')
    )
    # The pool alone sets the workers up, and the job alone says what they run.
    assert pool.keys() == {'pool', 'workdir', 'resources', 'setup'}
    assert job.keys() == {'name', 'resources', 'envs', 'run'}
    assert pool['resources'] == job['resources']
    assert (pool['setup'], pool['workdir']) == (slice_task['setup'], slice_task['workdir'])
    keys = 'infra', 'accelerator_args', 'use_spot'
    assert {key: pool['resources'][key] for key in keys} == {
        key: slice_task['resources'][key] for key in keys
    }
    # One machine for each worker.
    cloud_type = pool['resources']['accelerators'].removeprefix('tpu-')
    script = f'source launch/common.sh; type={cloud_type}; check_type; echo "$HOSTS"'
    assert subprocess.check_output(['bash', '-c', script], cwd=ROOT, text=True) == '1\n'
    documentation = (ROOT / 'docs' / 'cloud.md').read_text().replace('\\\n', ' ')
    assert 'sky jobs pool apply --pool=td-jax launch/skypilot_pool.yaml' in documentation
    (documented_flags,) = re.findall(
        r'sky jobs launch --pool=td-jax (.*launch/skypilot_shards.yaml.*)', documentation
    )
    assert f'--num-jobs={pool["pool"]["workers"]} ' in documented_flags
    missing = {name for name, value in job['envs'].items() if value is None}
    assert missing <= set(re.findall(r'--env=(\w+)=', documented_flags))
    (tmp_path / '.venv' / 'bin').mkdir(parents=True)
    write_executable(tmp_path / '.venv' / 'bin' / 'python', '#!/bin/sh\nprintf "%s\\n" "$@"')
    environment = {**os.environ, **job['envs'], 'WORKDIR': 'gs://b/a run', 'TFDS_DATA_DIR': 'gs://b/tfds'}
    out = subprocess.check_output(['bash', '-c', job['run']], cwd=tmp_path, env=environment, text=True)
    assert out.splitlines() == [
        '-m',
        'td_jax.reproduce',
        '--shard=auto',
        '--workdir=gs://b/a run',
        '--tables=4',
    ]


# --- Slurm -----------------------------------------------------------------------------------------


def run_slurm(folder, *arguments):
    return subprocess.run(
        ['bash', ROOT / 'launch' / 'slurm.sh', *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_task_of_slurm_is_a_worker(tmp_path):
    (tmp_path / '.venv' / 'bin').mkdir(parents=True)
    write_executable(tmp_path / '.venv' / 'bin' / 'python', '#!/bin/sh\nprintf "%s\\n" "$@"; exit 3')
    completed = run_slurm(tmp_path, 'tune', '--config=digits', '--methods=td ld')
    assert (completed.returncode, completed.stderr) == (3, '')
    assert completed.stdout.splitlines() == [
        *('-m', 'td_jax.tune', '--shard=auto', '--config=digits', '--methods=td ld')
    ]
    lines = (ROOT / 'launch' / 'slurm.sh').read_text().splitlines()
    # sbatch reads its options up to the first command.
    comments = list(itertools.takewhile(lambda line: not line or line.startswith('#'), lines))
    options = [line for line in lines if line.startswith('#SBATCH')]
    assert options == [line for line in comments if line.startswith('#SBATCH')] and options
    for option in options:
        assert re.fullmatch(r'#SBATCH --(job-name=\w+|requeue|open-mode=append)', option)
    usage = run_slurm(tmp_path, '--help').stdout
    assert 'sbatch --array=1-10 launch/slurm.sh reproduce' in usage and 'SBATCH' not in usage


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], "'' is no command here; write reproduce, tune or compare"),
        (['main'], "'main' is no command here; write reproduce, tune or compare"),
        (['tune'], '.venv is missing; run bash launch/test.sh --setup-only, and sbatch from the checkout.'),
    ],
)
def test_bad_use_of_slurm_is_one_line(tmp_path, arguments, message):
    completed = run_slurm(tmp_path, *arguments)
    assert (completed.returncode, completed.stdout) == (2, '')
    (line,) = completed.stderr.splitlines()
    assert line.startswith(f'slurm.sh: {message}')


# --- The documentation -----------------------------------------------------------------------------


def test_documented_commands_are_understood(cloud):
    text = (ROOT / 'docs' / 'cloud.md').read_text().replace('\\\n', ' ')
    for name, value in (('ZONE', 'us-central1-a'), ('BUCKET', 'b'), ('IMAGE', 'i:1')):
        text = text.replace(f'${name}', value)
    commands = re.findall(r'^ +bash launch/(tpu_vm|gke)\.sh (.*)$', text, re.MULTILINE)
    assert {shlex.split(arguments)[0] for script, arguments in commands if script == 'tpu_vm'} == {
        *('create', 'setup', 'run', 'logs', 'status', 'delete')
    }
    assert {'tpu_vm', 'gke'} == {script for script, _ in commands}
    for script, arguments in commands:
        words = shlex.split(arguments.partition('|')[0])
        if script == 'tpu_vm':
            code, _, err = cloud(*words[:2], '--dry_run', *words[2:])
            assert code == 0, err
        else:
            check_manifest(make_manifest(*words))
