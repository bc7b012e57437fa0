"""The package as pip sees it."""

import importlib
import pathlib
import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import td_jax
from td_jax.files import trackers

ROOT = pathlib.Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_every_command_of_the_package_is_one_of_td_jax():
    scripts = PYPROJECT['project']['scripts']
    modules = set()
    for name, place in scripts.items():
        module, _, function = place.partition(':')
        assert callable(getattr(importlib.import_module(module), function)), name
        modules.add(module.removeprefix('td_jax.'))
    with_main = {path.stem for path in (ROOT / 'td_jax').glob('*.py') if '\ndef main()' in path.read_text()}
    assert modules == with_main
    assert 'main' in modules


def test_version_and_dependencies_are_declared_once():
    dynamic = PYPROJECT['tool']['setuptools']['dynamic']
    assert set(PYPROJECT['project']['dynamic']) == {'version', 'dependencies'}
    assert dynamic['version'] == {'attr': 'td_jax.__version__'}
    assert re.fullmatch(r'\d+\.\d+\.\d+', td_jax.__version__)
    assert dynamic['dependencies'] == {'file': ['requirements.txt']}
    assert (ROOT / 'requirements.txt').is_file()


def test_what_the_package_reads_goes_with_it():
    data = PYPROJECT['tool']['setuptools']['package-data']
    packed = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.replace('.', '/')).glob(pattern)
    }
    data_files = {
        path for path in (ROOT / 'td_jax').rglob('*') if path.is_file() and path.suffix not in ('.py', '.pyc')
    }
    assert packed == data_files
    assert data_files


def test_licence_and_version_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == td_jax.__version__
    assert citation['license'] == PYPROJECT['project']['license'] == 'Apache-2.0'
    assert 'Apache License\n' in (ROOT / 'LICENSE').read_text()
    changes = (ROOT / 'CHANGELOG.md').read_text()
    assert f'version {td_jax.__version__}' in changes or f'## {td_jax.__version__}' in changes


def test_every_tracker_is_an_extra():
    extras, dev = PYPROJECT['project']['optional-dependencies'], (ROOT / 'requirements-dev.txt').read_text()
    for name, tracker in trackers.TRACKERS.items():
        (requirement,) = extras[name]
        assert Requirement(requirement).name == tracker.package
        assert f'\n{requirement}\n' in dev


def read_versions(file, operator):
    """{(package, marker): its version after the operator} of a file of requirements."""
    lines = [line.partition('#')[0].strip() for line in (ROOT / file).read_text().splitlines()]
    version_by_package = {}
    for requirement in map(Requirement, filter(None, lines)):
        (bound,) = requirement.specifier
        assert bound.operator == operator, requirement
        version_by_package[requirement.name, str(requirement.marker)] = Version(bound.version)
    return version_by_package


def test_the_oldest_versions_are_the_lower_bounds():
    assert read_versions('requirements-oldest.txt', '==') == read_versions('requirements.txt', '>=')
