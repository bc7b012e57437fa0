"""The limit on restarts of a run without progress: the count in its workdir, and a launcher."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from etils import epath

from td_jax.errors import Stopped, UserError
from td_jax.training import restarts

ROOT = pathlib.Path(__file__).parents[2]


def start_and_lose(folder):
    """Starts a run that ends because another process is lost."""
    with pytest.raises(jax.errors.JaxRuntimeError), restarts.count_start(folder, True):
        raise jax.errors.JaxRuntimeError('UNAVAILABLE: another process is gone')


def make_checkpoint(folder, step):
    (folder / 'checkpoints' / str(step)).mkdir(parents=True)


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path / 'runs' / 'new')


def test_a_run_that_gets_nowhere_is_refused_after_three_restarts(folder):
    for _ in range(1 + restarts.MOST):
        start_and_lose(folder)
    for _ in range(2):
        with pytest.raises(UserError) as error_info, restarts.count_start(folder, True):
            pytest.fail('it was started')
        assert str(error_info.value) == (
            f'{folder} was started 4 times without a new checkpoint in between, and lost a process each '
            f'time; what the processes printed may say why. Delete {folder}/restarts.json to start it again.'
        )
    (folder / 'restarts.json').unlink()
    start_and_lose(folder)


@pytest.mark.parametrize('part', ['.', 'teacher'])
def test_a_new_checkpoint_is_a_new_beginning(folder, part):
    for step in (5, 10, 15):
        for _ in range(1 + restarts.MOST):
            start_and_lose(folder)
        make_checkpoint(folder / part, step)
    start_and_lose(folder)
    assert json.loads((folder / 'restarts.json').read_text())['starts'] == 1


@pytest.mark.parametrize(
    'error', [None, UserError('no'), Stopped('stopped'), KeyboardInterrupt(), ValueError()]
)
@pytest.mark.parametrize('is_there', [False, True])
def test_what_ends_otherwise_leaves_nothing(folder, error, is_there, tmp_path):
    if is_there:
        make_checkpoint(folder, 5)
        start_and_lose(folder)
    try:
        with restarts.count_start(folder, True):
            assert json.loads((folder / 'restarts.json').read_text())['starts'] == 1 + is_there
            if error:
                raise error
    except BaseException as caught_error:
        assert caught_error is error
    names = sorted(path.name for path in tmp_path.rglob('*'))
    assert names == (['5', 'checkpoints', 'new', 'runs'] if is_there else [])


def test_a_folder_in_which_something_came_to_be_stays(folder):
    with restarts.count_start(folder, True):
        (folder / 'config.json').write_text('{}')
    assert [path.name for path in folder.iterdir()] == ['config.json']


def test_a_process_that_no_launcher_started_counts_nothing(folder):
    with restarts.count_start(folder, False):
        assert not folder.exists()


def test_a_count_that_is_none_is_refused(folder):
    folder.mkdir(parents=True)
    (folder / 'restarts.json').write_text('{"steps": [-1, -1], "starts": "many"}')
    with (
        pytest.raises(UserError, match=r'restarts\.json is damaged; delete it\.$'),
        restarts.count_start(folder, True),
    ):
        pytest.fail('it was started')


def test_a_count_is_kept_in_a_bucket(place):
    for _ in range(1 + restarts.MOST):
        start_and_lose(place)
    with pytest.raises(UserError, match='was started 4 times'), restarts.count_start(place, True):
        pytest.fail('it was started')
    (place / 'restarts.json').unlink()
    with restarts.count_start(place, True):
        assert (place / 'restarts.json').exists()
    assert not (place / 'restarts.json').exists()


# A Python that runs td_jax.main with data that lose a process in every start.
LOSING_PYTHON = """#!{python}
import sys

sys.path.insert(0, {root!r})
import jax
from td_jax import main
from td_jax.data import SOURCES

def loses(config, task):
    raise jax.errors.JaxRuntimeError('UNAVAILABLE: the barrier of these data is closed')

SOURCES['digits'] = loses
sys.argv = ['td_jax.main', *sys.argv[3:]]
main.main()
"""


@pytest.mark.long
def test_a_launcher_that_calls_again_comes_to_an_end(tmp_path):
    python = tmp_path / 'python'
    python.write_text(LOSING_PYTHON.format(python=sys.executable, root=str(ROOT)))
    python.chmod(0o755)
    flags = [
        '--config=td_jax/configs/digits.py',
        '--config.method=supervised',
        f'--workdir={tmp_path / "run"}',
    ]
    completed = subprocess.run(
        ['bash', 'launch/local.sh', '-n', '2', '--restart', '--', *flags],
        cwd=ROOT,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHON': str(python)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert completed.returncode == 2, completed.stdout + completed.stderr
    assert completed.stderr.count('lost a process; calling it again') == 4
    assert (
        completed.stdout.count('[0] td_jax: another process of the run is gone; the same command continues.')
        == 4
    )
    (line,) = {
        line for line in completed.stdout.splitlines() if 'was started' in line and line.startswith('[0]')
    }
    assert line.startswith(f'[0] td_jax: {tmp_path}/run was started 4 times without a new checkpoint')
