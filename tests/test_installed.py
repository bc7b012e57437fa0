"""td_jax installed beside other code, which may have a package called configs, as most JAX projects do."""

import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = (
    '--config.method=supervised',
    '--config.num_seeds=1',
    '--config.num_steps=2',
    '--config.batch_size=7',
)
OWN = """
import configs
import td_jax
from td_jax.configs import digits

assert configs.WHOSE == 'theirs'
config = digits.get_config()
config.method, config.num_seeds, config.num_steps, config.batch_size = 'supervised', 1, 2, 7
assert td_jax.train(config, 'own')['steps'] == 2
"""


@pytest.fixture(scope='module', params=[['-e'], []], ids=['editable', 'copied'])
def python(request, tmp_path_factory):
    """The Python of an environment that has td_jax by pip, and this one's other packages."""
    folder = tmp_path_factory.mktemp('installed')
    source = folder / 'source'
    tracked = subprocess.check_output(['git', 'ls-files'], cwd=ROOT, text=True).splitlines()
    for name in tracked:
        if name.startswith(('td_jax/', 'configs/')) or '/' not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    venv.create(folder / 'venv')
    (packages,) = (folder / 'venv').glob('lib/*/site-packages')
    (packages / 'others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'pip', '--python', folder / 'venv', 'install', '--quiet', '--no-deps'),
            *('--disable-pip-version-check', '--no-build-isolation', *request.param, source),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / 'venv' / 'bin' / 'python'


@pytest.fixture
def project(tmp_path):
    """Somebody's project, which has a package called configs."""
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / '__init__.py').write_text("WHOSE = 'theirs'\n")
    return tmp_path


def ended(python, arguments, folder):
    done = subprocess.run([python, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.long
def test_td_jax_works_beside_a_package_called_configs(python, project):
    code, out, err = ended(python, ['-c', OWN], project)
    assert (code, out) == (0, ''), err
    main = ['-m', 'td_jax.main', '--config=td_jax/configs/digits.py', '--workdir=run']
    code, out, err = ended(python, [*main, *FLAGS], project)
    assert code == 0, err
    assert out.startswith('supervised on digits 5, 6, 7, 8, 9: test accuracy 0.')
    assert (project / 'run' / 'result.json').is_file()
    # The copy that was installed, not the checkout of these tests.
    code, out, _ = ended(python, ['-c', 'import td_jax; print(td_jax.__file__)'], project)
    assert code == 0
    assert str(ROOT) not in out


@pytest.mark.long
def test_a_config_that_is_elsewhere_is_named(python, project):
    code, out, err = ended(
        python, ['-m', 'td_jax.main', '--config=configs/digits.py', '--workdir=run'], project
    )
    assert (code, out, err) == (
        2,
        '',
        'td_jax: --config=configs/digits.py is not there; the config of that name that td_jax ships is '
        '--config=td_jax/configs/digits.py.\n',
    )
