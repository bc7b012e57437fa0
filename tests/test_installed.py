"""td_jax installed next to other code with a package called configs, as in many JAX projects."""

import ast
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
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


@pytest.fixture(scope='module', params=['editable', 'wheel'])
def python(request, tmp_path_factory):
    """The Python of an environment with td_jax installed by pip, and this one's other packages."""
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
    options = '--quiet', '--no-deps', '--no-build-isolation', '--disable-pip-version-check'
    target = '-e', source
    if request.param == 'wheel':
        pip('wheel', *options, '--wheel-dir', folder / 'dist', source)
        # Only the wheel is left.
        shutil.rmtree(source)
        target = (folder / 'dist').glob('td_jax-*-py3-none-any.whl')
    pip('--python', folder / 'venv', 'install', *options, *target)
    return folder / 'venv' / 'bin' / 'python'


def pip(*arguments):
    code, _, err = run_in_folder(sys.executable, ['-m', 'pip', *arguments], ROOT)
    assert code == 0, err


@pytest.fixture
def project(tmp_path):
    """A project that has a package called configs."""
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / '__init__.py').write_text("WHOSE = 'theirs'\n")
    return tmp_path


def run_in_folder(python, arguments, folder):
    completed = subprocess.run([python, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return completed.returncode, completed.stdout, completed.stderr


@pytest.mark.long
def test_td_jax_works_next_to_a_package_called_configs(python, project):
    code, out, err = run_in_folder(python, ['-c', OWN], project)
    assert (code, out) == (0, ''), err
    flags = ['--config=td_jax/configs/digits.py', '--workdir=run', *FLAGS]
    code, out, err = run_in_folder(python.parent / 'td-jax-train', flags, project)
    assert code == 0, err
    assert out.startswith('supervised on digits 5, 6, 7, 8, 9: test accuracy 0.')
    assert (project / 'run' / 'result.json').is_file()
    # The installed copy, not the checkout of these tests.
    code, out, _ = run_in_folder(python, ['-c', 'import td_jax; print(td_jax.__file__)'], project)
    assert code == 0
    assert str(ROOT) not in out


@pytest.mark.long
@pytest.mark.parametrize('python', ['wheel'], indirect=True)
def test_every_command_of_the_wheel_starts_from_another_folder(python, project):
    scripts = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['scripts']
    assert {path.name for path in python.parent.glob('td-jax-*')} == scripts.keys()
    for name, place in scripts.items():
        code, out, err = run_in_folder(python.parent / name, ['--help'], project)
        # absl exits with 1 after --help, argparse with 0.
        assert (code, err) == (int(name != 'td-jax-inspect'), '')
        module = ROOT / f'{place.removesuffix(":main").replace(".", "/")}.py'
        assert ast.get_docstring(ast.parse(module.read_text())).splitlines()[0] in out
        assert re.search(r'\n  (--workdir|--config|CHECKPOINT)\b', out)


@pytest.mark.long
def test_a_config_that_is_elsewhere_is_named(python, project):
    code, out, err = run_in_folder(
        python, ['-m', 'td_jax.main', '--config=configs/digits.py', '--workdir=run'], project
    )
    assert (code, out, err) == (
        2,
        '',
        'td_jax: --config=configs/digits.py is not there; the config of that name that td_jax ships is '
        '--config=td_jax/configs/digits.py.\n',
    )
