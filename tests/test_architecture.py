"""Rules for the code as a whole: imports, options that are read, configs, and what is not allowed."""

import ast
import graphlib
import importlib
import pathlib
import re
import runpy

import numpy as np
import PIL.Image
import pytest

from td_jax import config as config_lib
from td_jax.configs import common, digits
from td_jax.files import metric_log
from td_jax.method import objectives
from td_jax.training import public_teacher
from td_jax.training.run import train

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'td_jax'
MODULES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for path in sorted(PACKAGE.rglob('*.py'))
}
SCRIPTS = [
    path
    for folder in ('td_jax', 'configs', 'examples', 'tests', 'benchmarks', 'launch', '.ci')
    for path in sorted((ROOT / folder).rglob('*'))
    if path.is_file() and path.suffix in ('.py', '.sh', '')
]
CONFIGS = [
    path.stem
    for path in sorted((PACKAGE / 'configs').glob('*.py'))
    if path.stem not in ('__init__', 'common', 'searches')
]

# The commands. Each imports from the packages below, and from no other command.
COMMANDS = {
    f'td_jax.{name}'
    for name in (
        'main',
        'compare',
        'reproduce',
        'tune',
        'export',
        'predict',
        'cka',
        'report',
        'inspect',
        'tpu_report',
    )
}
# {module or package: packages and modules that it may import in addition to its own package}.
ALLOWED = {
    'td_jax.errors': set(),
    'td_jax.configs': set(),
    'td_jax.quantities': set(),
    'td_jax.text_tables': set(),
    'td_jax.randomness': set(),
    'td_jax.command_line': {'td_jax.errors', 'td_jax.files.quiet'},
    'td_jax.devices': {'td_jax.errors'},
    'td_jax.files': {'td_jax.errors', 'td_jax.devices'},
    'td_jax.data': {'td_jax.errors', 'td_jax.quantities', 'td_jax.devices.memory', 'td_jax.randomness'},
    'td_jax.models': {'td_jax.errors', 'td_jax.devices.convolution', 'td_jax.devices.remat'},
    'td_jax.losses': set(),
    'td_jax.method.communication': set(),
    'td_jax.method.grids': set(),
    'td_jax.method.shared': {
        'td_jax.method.communication',
        'td_jax.method.grids',
        'td_jax.models.base',
    },
    'td_jax.method.logits': {'td_jax.losses', 'td_jax.models.base', 'td_jax.randomness'},
    'td_jax.method.one_way': {
        'td_jax.losses',
        'td_jax.method.logits',
        'td_jax.method.shared',
        'td_jax.models.base',
        'td_jax.randomness',
    },
    'td_jax.method.talking': {
        'td_jax.devices.remat',
        'td_jax.losses',
        'td_jax.method.logits',
        'td_jax.method.one_way',
        'td_jax.method.shared',
        'td_jax.randomness',
    },
    # The table of methods, which all others read.
    'td_jax.method': {'td_jax.errors', 'td_jax.devices.precision'},
    'td_jax.pretrained': {
        'td_jax.data.resizing',
        'td_jax.errors',
        'td_jax.files.workdir',
        'td_jax.models.efficientnet',
        'td_jax.models.resnet_bn',
        'td_jax.models.resnet',
        'td_jax.models.vit',
    },
    # The report of the command `inspect`.
    'td_jax.pretrained.summary': {
        'td_jax.text_tables',
        'td_jax.configs.common',
        'td_jax.devices.platform',
        'td_jax.method',
        'td_jax.models',
        'td_jax.pretrained',
    },
    # A function of raw inputs: neither a run nor a file.
    'td_jax.predicting.program': {'td_jax.data', 'td_jax.models.base'},
    'td_jax.predicting.speed': {
        'td_jax.data',
        'td_jax.models.base',
        'td_jax.training.finished',
        'td_jax.training.train_step',
    },
    'td_jax.predicting': {
        'td_jax.text_tables',
        'td_jax.errors',
        'td_jax.data',
        'td_jax.files.workdir',
        'td_jax.training.finished',
        'td_jax.training.train_step',
    },
    'td_jax.exporting': {
        'td_jax.text_tables',
        'td_jax.errors',
        'td_jax.data',
        'td_jax.files.workdir',
        'td_jax.models',
        'td_jax.predicting.program',
        'td_jax.pretrained',
        'td_jax.training.assembly',
        'td_jax.training.finished',
        'td_jax.training.teachers',
        'td_jax.training.train_step',
    },
    'td_jax.config': {
        'td_jax.configs.common',
        'td_jax.errors',
        'td_jax.data',
        'td_jax.devices.remat',
        'td_jax.method',
        'td_jax.models',
        'td_jax.training.optimizer',
    },
    'td_jax.training.optimizer': set(),
    'td_jax.training.train_step': {
        'td_jax.method',
        'td_jax.models.base',
        'td_jax.randomness',
        'td_jax.training.optimizer',
        'td_jax.training.probe',
    },
    'td_jax.training.probe': {'td_jax.models.base'},
    'td_jax.training.diagnostics': {
        'td_jax.devices.processes',
        'td_jax.method',
        'td_jax.training.train_step',
    },
    'td_jax.training.dispatch': {
        'td_jax.config.effect',
        'td_jax.data.base',
        'td_jax.devices',
        'td_jax.models.base',
        'td_jax.randomness',
        'td_jax.training.diagnostics',
        'td_jax.training.evaluation',
        'td_jax.training.probe',
        'td_jax.training.train_step',
    },
    'td_jax.training.evaluation': {
        'td_jax.data.base',
        'td_jax.devices',
        'td_jax.method',
        'td_jax.models.base',
    },
    # The defaults distinguish what a checkpoint sets from what the user set.
    'td_jax.training.public_teacher': {
        'td_jax.config',
        'td_jax.configs.common',
        'td_jax.data',
        'td_jax.devices.processes',
        'td_jax.errors',
        'td_jax.files.workdir',
        'td_jax.method',
        'td_jax.pretrained',
    },
    'td_jax.training': {
        'td_jax.errors',
        'td_jax.config',
        'td_jax.data',
        'td_jax.devices',
        'td_jax.files',
        'td_jax.method',
        'td_jax.models',
        'td_jax.pretrained',
        'td_jax.quantities',
        'td_jax.randomness',
    },
    'td_jax.own': {
        'td_jax.configs.common',
        'td_jax.config',
        'td_jax.errors',
        'td_jax.files.workdir',
        'td_jax.method.shared',
        'td_jax.training',
    },
    'td_jax.statistics': set(),
    'td_jax.reproduction.tables': {'td_jax.config', 'td_jax.configs.searches', 'td_jax.errors'},
    'td_jax.reproduction': {
        'td_jax.text_tables',
        'td_jax.configs',
        'td_jax.errors',
        'td_jax.config',
        'td_jax.data',
        'td_jax.devices',
        'td_jax.files',
        'td_jax.method',
        'td_jax.quantities',
        'td_jax.statistics',
        'td_jax.training',
    },
    'td_jax.reporting.markup': set(),
    'td_jax.reporting': {
        'td_jax.errors',
        'td_jax.analysis.cka',
        'td_jax.config',
        'td_jax.files',
        'td_jax.reproduction.comparison',
        'td_jax.reproduction.errors',
        'td_jax.statistics',
        'td_jax.training.data_record',
        'td_jax.training.evaluation',
        'td_jax.training.finished',
    },
    'td_jax.analysis.heat_map': set(),
    'td_jax.analysis.linear_cka': set(),
    'td_jax.analysis': {
        'td_jax.text_tables',
        'td_jax.errors',
        'td_jax.config',
        'td_jax.data',
        'td_jax.devices',
        'td_jax.files',
        'td_jax.method',
        'td_jax.models',
        'td_jax.statistics',
        'td_jax.training',
    },
}
# From the top of a run down: a module imports none of those before it.
TRAINING = (
    'restarts',
    'run',
    'loop',
    'preflight',
    'programs',
    'public_teacher',
    'teachers',
    'finished',
    'data_record',
    'provenance',
    'teacher_outputs',
    'memory',
    'assembly',
    'dispatch',
    'evaluation',
    'diagnostics',
    'selection',
    'train_step',
    'probe',
    'optimizer',
)


def list_imports(name, source):
    """The modules of this project that a module imports anywhere in its source."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{name} imports by dots'
            for alias in node.names:
                inner = f'{node.module}.{alias.name}'
                modules.add(inner if inner in MODULES else node.module)
    return {module for module in modules if module.split('.')[0] == 'td_jax'}


IMPORTS = {name: list_imports(name, path.read_text()) - {'td_jax'} for name, path in MODULES.items()}


def lies_in(module, place):
    """Whether a module is the given module, or part of the given package."""
    return module == place or module.startswith(f'{place}.')


@pytest.mark.parametrize('name', sorted(MODULES.keys() - {'td_jax'}))
def test_imports_point_down(name):
    if name in COMMANDS:
        assert not IMPORTS[name] & COMMANDS
        return
    places = [place for place in ALLOWED if lies_in(name, place)]
    assert places, f'{name} is new: say what it may import'
    # The most specific rule applies. A rule for a package also allows imports within it.
    place = max(places, key=len)
    room = {place} if place == '.'.join(name.split('.')[:2]) else set()
    for module in IMPORTS[name]:
        assert any(lies_in(module, allowed) for allowed in ALLOWED[place] | room), f'{name} imports {module}'


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: modules & MODULES.keys() for name, modules in IMPORTS.items()}
    # Raises a CycleError.
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == MODULES.keys()


def test_a_run_goes_down_the_house_and_never_up():
    assert {f'td_jax.training.{name}' for name in TRAINING} | {'td_jax.training'} == {
        name for name in MODULES if lies_in(name, 'td_jax.training')
    }
    for i, name in enumerate(TRAINING):
        above = {f'td_jax.training.{other}' for other in TRAINING[:i]}
        assert not IMPORTS[f'td_jax.training.{name}'] & above, name


def test_a_finished_run_is_read_without_the_loop():
    reached, new = set(), {'td_jax.export', 'td_jax.predict', 'td_jax.cka', 'td_jax.report'}
    while new:
        reached |= new
        new = set().union(*(IMPORTS.get(name, set()) for name in new)) - reached
    assert 'td_jax.training.finished' in reached
    assert not reached & {'td_jax.training.loop', 'td_jax.training.run', 'td_jax.training.preflight'}


def test_only_the_step_differentiates():
    calls = re.compile(r'jax\.(value_and_)?grad\b|jax\.vjp\b|jax\.jacobian\b')
    assert {name for name, path in MODULES.items() if calls.search(path.read_text())} == {
        'td_jax.training.train_step'
    }


def list_names_read(source):
    """The attributes and constant keys that a source reads."""
    tree = ast.parse(source)
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keys = {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
    }
    return attributes | {key for key in keys if isinstance(key, str)}


def find_unread(keys, sources):
    """The options whose name no source reads."""
    names = set().union(*map(list_names_read, sources))
    return {key for key in keys if key.split('.')[-1] not in names}


def test_every_option_is_read():
    sources = [
        path.read_text()
        for name, path in MODULES.items()
        if not lies_in(name, 'td_jax.config') and not lies_in(name, 'td_jax.reproduction')
    ]
    # Weights are read by the name of their term; the tests of the methods check those.
    keys = {key for key in config_lib.flatten(common.get_config()) if '.weights.' not in key}
    teachers = {'teacher.seed', 'teacher.num_steps'}
    assert find_unread(keys - teachers, sources) == set()
    assert find_unread(teachers, [MODULES['td_jax.config.tree'].read_text()]) == set()


def test_an_option_that_nothing_reads_is_found():
    sources = ['x = config.read\n# config.only_said\n"""config.only_said"""\ny = config["by_key"]']
    assert find_unread({'a.read', 'by_key', 'only_said'}, sources) == {'only_said'}


@pytest.mark.usefixtures('shared_programs')
@pytest.mark.parametrize(
    'method',
    [
        method if method == 'ld' else pytest.param(method, marks=pytest.mark.long)
        for method in objectives.METHODS
        if method != 'supervised'
    ],
)
def test_every_weight_belongs_to_a_term(small_config, tmp_path, method):
    """Every method trains, and logs the task and the terms that it has weights for."""
    config = small_config(method=method, num_steps=2, teacher__num_steps=2, td__weights__logits=0.5)
    result = train(config, tmp_path)
    (line,) = [line for line in metric_log.read(tmp_path) if 'train_loss' in line]
    assert set(config[method].weights) <= {name.removeprefix('train_') for name in line}
    assert all(np.isfinite(value) for value in line.values())
    assert all(np.isfinite(result['values']))


# Changes with which a config trains in seconds.
SMALL = {
    'diagnostics': False,
    'optimizer.warmup_steps': 0,
    'teacher.optimizer.warmup_steps': 0,
    'num_seeds': 1,
    'num_steps': 2,
    'batch_size': 8,
    'model.hidden': (5, 3),
    'teacher.num_steps': 2,
    'teacher.model.hidden': (7, 4),
    'communication.hidden': 6,
    'communication.message': 4,
}


# The same for a ViT, whose teacher is a checkpoint in the public format.
SMALL_VIT = {
    'dataset.image_size': 32,
    'eval_batch_size': 500,
    'model.layers': 1,
    'model.split': 1,
    'teacher.model.layers': 6,
    'teacher.model.pre_logits': True,
    'teacher.pretrained': str(ROOT / 'tests' / 'golden' / 'vit_tiny_prelogits.npz'),
    **{
        f'{model}.{key}': value
        for model in ('model', 'teacher.model')
        for key, value in {'patch': 8, 'width': 48, 'mlp': 96, 'heads': 4}.items()
    },
}
# The same for a config with a public teacher, which describes itself.
SMALL_PUBLIC = {
    **{'model.layers': 1, 'model.split': 1, 'dataset.image_size': 16, 'dataset.examples_per_class': 5},
    **{'eval_batch_size': 500, 'teacher.dataset.image_size': 16},
}
DATA_OF = {'movielens': 'movielens_data', 'cifar10': 'cifar10_data', 'imagenet': 'imagenet_data'}


@pytest.mark.long
@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_trains(request, tmp_path, name):
    config = importlib.import_module(f'td_jax.configs.{name}').get_config()
    # CIFAR-100 differs in its labels alone.
    config.dataset.name = config.dataset.name.replace('cifar100', 'cifar10')
    if config.dataset.name in DATA_OF:
        request.getfixturevalue(DATA_OF[config.dataset.name])
    if config.dataset.name == 'ratings':
        config.dataset.path = str(tmp_path / 'own.csv')
        rows = ''.join(f'u{i % 7},i{i % 5},{i % 3},{i}\n' for i in range(100))
        (tmp_path / 'own.csv').write_text(f'user,item,rating,timestamp\n{rows}')
    config.update_from_flattened_dict(SMALL)
    if config.dataset.name == 'cifar10':
        # Half as many images to evaluate.
        config.dataset.split = 'validation'
    if config.dataset.name == 'images':
        config.dataset.path, config.teacher.labels = str(tmp_path / 'own'), 'probe'
        for i in range(24):
            file = tmp_path / 'own' / 'ab'[i % 2] / f'{i}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new('RGB', (40, 30), (i, i, i)).save(file)
    if name.startswith('public_'):
        changes = SMALL_PUBLIC | {'teacher.pretrained': str(ROOT / 'tests' / 'golden' / 'hf_dinov2_tiny')}
        config.update_from_flattened_dict(changes)
        config = public_teacher.complete_architecture(config, list(changes))
    elif config.model.name == 'vit':
        config.update_from_flattened_dict(SMALL_VIT)
    result = train(config, tmp_path / 'run')
    assert result['steps'] == 2
    assert np.isfinite(result['mean'])


def test_every_method_is_where_a_person_looks_for_it():
    readme, common_config = (ROOT / name for name in ('README.md', 'td_jax/configs/common.py'))
    (line,) = re.findall(
        r'name of td_jax.method.objectives.METHODS(.*?)config.method', common_config.read_text(), re.S
    )
    for method in objectives.METHODS:
        assert f'| `{method}` |' in readme.read_text()
        assert re.search(rf'\b{method}\b', line), method


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_begins_with_its_command_and_what_it_scores(name):
    title, command, score, *_ = (PACKAGE / 'configs' / f'{name}.py').read_text().split('\n\n')
    assert re.fullmatch(r'""".+: .+\.', title)
    assert re.match(
        rf'    python -m td_jax\.(main|compare) --config=configs/{name}\.py --workdir=runs/\w+', command
    )
    # A checkout has each config under the name that its command gives.
    shim = runpy.run_path(ROOT / 'configs' / f'{name}.py')
    assert shim['get_config'] is importlib.import_module(f'td_jax.configs.{name}').get_config
    assert score.startswith('Score: ')
    keys = config_lib.flatten(common.get_config()).keys()
    assert set(re.findall(r'--config\.([\w.]+)=', command)) <= keys


def test_every_file_in_configs_differs_from_common_in_values_alone():
    assert CONFIGS
    declared = config_lib.flatten(common.get_config()).keys()
    for name in CONFIGS:
        config = importlib.import_module(f'td_jax.configs.{name}').get_config()
        added = config_lib.flatten(config).keys() - declared
        assert all('.embeddings.' in key for key in added)


def test_what_is_deprecated_or_unsafe_stays_out():
    # Concatenated, so that this file does not contain them.
    words = [
        'jax' + '.pmap',
        'jax' + '.tree_map',
        'flax.training' + '.checkpoints',
        'pic' + 'kle',
        '/wo' + 'rk/',
        '/ho' + 'me/',
    ]
    assert PACKAGE / 'training' / 'run.py' in SCRIPTS
    for path in SCRIPTS:
        text = path.read_text()
        assert [word for word in words if word in text] == [], path


@pytest.mark.parametrize('name', MODULES)
def test_everything_public_says_what_it_is(name):
    tree = ast.parse(MODULES[name].read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
            assert ast.get_docstring(node) or node.name == 'main', f'{name}.{node.name}'


def test_digits_is_the_papers_setting_at_reduced_scale():
    """The teacher's labels and the student's have nothing in common."""
    config = digits.get_config()
    assert not set(config.dataset.classes) & set(config.teacher.dataset.classes)
