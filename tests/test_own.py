"""Models, data sets and methods that a caller defines in a file of its own."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
from etils import epath

import td_jax
from td_jax import compare, own
from td_jax import config as config_lib
from td_jax.data import digits
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.method import objectives
from td_jax.models import MODELS, base, mlp
from td_jax.training import data_record, provenance

ROOT = pathlib.Path(__file__).parents[1]
BROUGHT = {
    'models': {'perceptron': mlp.build},
    'sources': {'numerals': digits.load},
    'methods': {'hints': objectives.METHODS['fitnet']},
}


def load_module(path, name='brought'):
    """Loads a file as a module, as a caller's own file is loaded."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def config_of_own_parts(small_config):
    """A config whose model, data set and method are a caller's, with other names than td_jax's."""
    config = small_config(method='hints', model__name='perceptron', dataset__name='numerals')
    config.teacher.model.name = 'perceptron'
    config.own.hints = {'weights': {'state': 3.0}}
    return config


@pytest.fixture(scope='module')
def run_of_own_parts(config_of_own_parts, tmp_path_factory):
    """(workdir, result) of a run of this config."""
    folder = tmp_path_factory.mktemp('brought') / 'run'
    return folder, td_jax.train(config_of_own_parts, folder, **BROUGHT)


def test_what_is_brought_computes_what_td_jax_computes(run_of_own_parts, small_config, tmp_path):
    """The reference is a run of the same functions under td_jax's names."""
    folder, result = run_of_own_parts
    expected = td_jax.train(small_config(method='fitnet', fitnet__weights__state=3.0), tmp_path / 'run')
    assert result['values'] == expected['values']
    assert result['teacher_fingerprint'] == expected['teacher_fingerprint']
    ours, theirs = td_jax.load(folder, 1, **BROUGHT), td_jax.load(tmp_path / 'run', 1)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    # The caller's parts do not stay in the tables of td_jax.
    assert 'perceptron' not in MODELS


def test_a_run_says_what_it_is_made_of(run_of_own_parts):
    folder, _ = run_of_own_parts
    provenance = workdir.read_json(folder / workdir.PROVENANCE)
    assert {kind: list(parts) for kind, parts in provenance.items()} == {
        'models': ['perceptron'],
        'sources': ['numerals'],
        'methods': ['hints'],
    }
    assert provenance['models']['perceptron']['file'] == 'mlp.py'
    # A teacher is a run of its own, which does not use the student's method.
    of_teacher = workdir.read_json(folder / 'teacher' / workdir.PROVENANCE)
    assert of_teacher == {key: provenance[key] for key in ('models', 'sources')}
    with pytest.raises(UserError) as error_info:
        td_jax.load(folder)
    assert str(error_info.value) == (
        f'{folder} uses parts of your own, hints of one_way.py, perceptron of mlp.py, numerals of '
        f'digits.py; read it from Python, with td_jax.load({str(folder)!r}, '
        "methods={'hints': ...}, models={'perceptron': ...}, sources={'numerals': ...})."
    )


@pytest.mark.long
def test_what_is_brought_is_compared(config_of_own_parts, tmp_path, capsys):
    """A caller's method that is FitNet under another name has FitNet's draws, choice and results."""
    config = config_of_own_parts.copy_and_resolve_references()
    brought = {'models': BROUGHT['models'], 'sources': BROUGHT['sources'], 'own_methods': BROUGHT['methods']}
    effort = {'trials': 1, 'search_seeds': 1, 'seeds': 2}
    record = compare.run(config, tmp_path, methods=('fitnet', 'hints'), **effort, **brought)
    _, fitnet, hints = record['rows']
    assert [fitnet['variant'], hints['variant']] == ['fitnet', 'hints']
    for key in ('test_accuracy', 'validation_accuracy', 'parameters'):
        assert fitnet[key] == hints[key]
    weight = fitnet['config']['fitnet.weights.state']
    assert weight == hints['config']['own.hints.weights.state'] != 3.0
    assert '| hints ' in capsys.readouterr().out
    run = td_jax.load(tmp_path / 'best', **BROUGHT)
    assert run.config.method == record['best']


@pytest.mark.long
def test_the_example_trains_a_teacher_of_its_own(tmp_path, monkeypatch, capsys):
    """The accuracy of its student is that of the saved parameters, applied by hand."""
    example = load_module(ROOT / 'examples' / 'own_teacher.py', 'own_teacher')
    short_config = example.digits.get_config()
    (
        short_config.num_seeds,
        short_config.num_steps,
        short_config.teacher.num_steps,
        short_config.diagnostics,
    ) = 1, 20, 20, False
    monkeypatch.setattr(example.digits, 'get_config', lambda: short_config)
    example.train(tmp_path / 'run')
    run = td_jax.load(tmp_path / 'run', models={'convolutional': example.build})
    params, examples = run.params['student'], run.source.evaluation
    x = examples['image']
    for layer in ('hidden_layers_0', 'hidden_layers_1', 'output_layer'):
        x = x @ params[layer]['kernel'] + params[layer]['bias']
        x = np.maximum(x, 0) if layer != 'output_layer' else x
    accuracy = np.mean(x.argmax(axis=1) == examples['labels'])
    assert capsys.readouterr().out == f'accuracy {accuracy:.3f} of 1 students\n'
    assert len((ROOT / 'examples' / 'own_teacher.py').read_text().splitlines()) <= 60


def test_a_teacher_with_parameters_of_its_own_is_left_as_it_is(
    run_of_own_parts, config_of_own_parts, tmp_path
):
    """It gives the same result as the same teacher from its workdir."""
    folder, expected = run_of_own_parts
    teacher = td_jax.load(folder / 'teacher', **BROUGHT).params['student']

    def build(*arguments):
        return base.with_parameters(mlp.build(*arguments), teacher)

    config = config_of_own_parts.copy_and_resolve_references()
    config.teacher.model.name, config.teacher.num_steps = 'learned', 0
    parts = {**BROUGHT, 'models': {**BROUGHT['models'], 'learned': build}}
    result = td_jax.train(config, tmp_path / 'run', **parts)
    assert result['values'] == expected['values']
    assert result['teacher_fingerprint'] == expected['teacher_fingerprint']
    assert not (tmp_path / 'run' / 'teacher').exists()

    # Other parameters from the same source are another teacher, even if the run is finished.
    bias = teacher['output_layer']['bias']
    teacher['output_layer']['bias'] = bias + 1
    with pytest.raises(UserError, match=r'another teacher: teacher\.model brings other parameters'):
        td_jax.train(config, tmp_path / 'run', **parts)
    teacher['output_layer']['bias'] = bias
    config.teacher.control = 'shuffled'
    shuffled = td_jax.train(config, tmp_path / 'shuffled', **parts)
    assert shuffled['teacher_fingerprint'] == expected['teacher_fingerprint']
    config.teacher.control, config.teacher.checkpoint = 'none', str(folder / 'teacher')
    with pytest.raises(
        UserError, match=r'teacher\.num_steps is 0, which makes a teacher here, but teacher\.ch'
    ):
        td_jax.train(config, tmp_path / 'other', **parts)
    config.teacher.checkpoint = ''

    del teacher['output_layer']['bias']
    with pytest.raises(UserError, match='output_layer/bias is missing there and has shape'):
        td_jax.train(config, tmp_path / 'other', **parts)
    assert not (tmp_path / 'other').exists()


OWN_MODEL = """
from td_jax.models import mlp

def build(*arguments):
    return mlp.build(*arguments)
"""


def test_a_run_of_a_source_that_changed_is_refused(small_config, tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(OWN_MODEL)
    config = small_config(method='supervised', model__name='mine', num_steps=2)
    first = td_jax.train(config, tmp_path / 'run', models={'mine': load_module(file).build})
    file.write_text(OWN_MODEL + '# A change.\n')
    changed_models = {'mine': load_module(file).build}
    with pytest.raises(
        UserError, match=r'was made of another mine: mine\.py has changed since'
    ) as error_info:
        td_jax.train(config, tmp_path / 'run', models=changed_models)
    with pytest.raises(UserError, match='has changed since'):
        td_jax.load(tmp_path / 'run', models=changed_models)
    # Also as the teacher of a student that does not use the source.
    student_config = small_config(
        method='fitnet', num_steps=2, teacher__num_steps=2, teacher__model__name='mine'
    )
    student_config.teacher.checkpoint = str(tmp_path / 'run')
    student_config.teacher.model.hidden, student_config.teacher.dataset.classes = (
        config.model.hidden,
        config.dataset.classes,
    )
    student_config.teacher.dataset.examples_per_class = config.dataset.examples_per_class
    with pytest.raises(UserError, match='has changed since'):
        td_jax.train(student_config, tmp_path / 'student', models=changed_models)
    # The fix that the message names.
    provenance_file = tmp_path / 'run' / workdir.PROVENANCE
    assert str(provenance_file) in str(error_info.value)
    provenance_file.unlink()
    assert td_jax.train(config, tmp_path / 'run', models=changed_models) == first


def test_a_part_without_a_source_is_refused(small_config, tmp_path):
    """For example a function that was typed at a prompt."""
    namespace = {}
    exec('def build(*arguments):\n  from td_jax.models import mlp\n  return mlp.build(*arguments)', namespace)
    config = small_config(method='supervised', model__name='mine', num_steps=2)
    with pytest.raises(UserError, match='build has no source to identify it by'):
        td_jax.train(config, tmp_path / 'run', models={'mine': namespace['build']})
    assert not (tmp_path / 'run').exists()


OWN_SOURCE = """
import numpy as np
from td_jax.data import base, digits

def load(config, task):
    source = digits.load(config, task)
    pixels = np.load({path!r}) + source.train['image']
    return source._replace(train={{**source.train, 'image': pixels.astype(np.float32)}})

def load_stream(config, task):
    source, version = digits.load(config, task), float(np.load({path!r}))
    example = base.take(source.train, np.arange(1))
    train = base.TrainStream(len(source.train['labels']), example, None)
    return source._replace(train=train, known_by={{'version': f'{{version:.2f}}'}} if version else None)
"""


def test_a_data_set_of_a_caller_that_changed_is_refused(small_config, tmp_path):
    """Its arrays differ, even if the file of its function is the same."""
    (tmp_path / 'mine.py').write_text(OWN_SOURCE.format(path=str(tmp_path / 'pixels.npy')))
    np.save(tmp_path / 'pixels.npy', 0.0)
    mine = {'sources': {'mine': load_module(tmp_path / 'mine.py').load}}
    config = small_config(
        method='supervised', dataset__name='mine', num_steps=2, dataset__examples_per_class=0
    )
    first = td_jax.train(config, tmp_path / 'run', **mine)
    assert td_jax.train(config, tmp_path / 'run', **mine) == first
    images = td_jax.load(tmp_path / 'run', **mine).source.train['image']
    np.save(tmp_path / 'pixels.npy', 0.25)
    message = r'was trained on other data than digits .* is now: training examples: other content'
    with pytest.raises(UserError, match=message):
        td_jax.train(config, tmp_path / 'run', **mine)
    with pytest.raises(UserError, match=message):
        td_jax.load(tmp_path / 'run', **mine)
    np.save(tmp_path / 'pixels.npy', 0.0)
    np.testing.assert_array_equal(td_jax.load(tmp_path / 'run', **mine).source.train['image'], images)


def test_a_stream_of_a_caller_is_known_by_what_it_says(small_config, tmp_path, capsys):
    (tmp_path / 'mine.py').write_text(OWN_SOURCE.format(path=str(tmp_path / 'version.npy')))
    load = load_module(tmp_path / 'mine.py').load_stream
    config = small_config(dataset__examples_per_class=0)
    records = []
    for version in (1.0, 1.0, 2.0, 0.0):
        np.save(tmp_path / 'version.npy', version)
        sources = {data_record.STUDENT: load(config.dataset, config.dataset)}
        assert capsys.readouterr().err == ''
        data_record.say_unknown(sources)
        records.append(data_record.describe(sources))
    assert 'has no known_by: only the number of its examples tells whether' in capsys.readouterr().err
    data_record.check(tmp_path, records[0], records[1])
    with pytest.raises(UserError, match=r'is now: version: 1\.00 there, 2\.00 here\. Put the data back'):
        data_record.check(tmp_path, records[0], records[2])


@pytest.mark.parametrize('text', ['{"models": 3}', '{"models": {"mine": {}}}', '{"others": {}}'])
def test_a_damaged_record_is_one_line(small_config, tmp_path, text):
    (tmp_path / workdir.PROVENANCE).write_text(text)
    with pytest.raises(UserError, match=r'made_of\.json is damaged; delete it'):
        provenance.check_available(epath.Path(tmp_path))


@pytest.mark.parametrize(
    ('parts', 'message'),
    [
        ({'models': {'vit': mlp.build}}, "models has 'vit', which td_jax has itself"),
        ({'methods': {'seed': BROUGHT['methods']['hints']}}, "methods has 'seed', which td_jax has itself"),
        ({'models': {'a b': mlp.build}}, "models has 'a b'; the name of a part is a word"),
        ({'sources': {'mine': 3}}, "sources has 'mine', a int; it must be a function"),
        ({'methods': {'mine': mlp.build}}, "methods has 'mine', a function; it must be a td_jax.method"),
    ],
)
def test_what_cannot_be_brought_is_refused_by_name(small_config, tmp_path, parts, message):
    before = {name: dict(table) for name, table in provenance.TABLES.items()}
    with pytest.raises(UserError, match=message):
        td_jax.train(small_config(), tmp_path / 'run', **parts)
    assert {name: dict(table) for name, table in provenance.TABLES.items()} == before
    assert not (tmp_path / 'run').exists()


def test_a_method_that_is_brought_without_weights_is_refused(config_of_own_parts, tmp_path):
    config = config_of_own_parts.copy_and_resolve_references()
    for own_knobs in ({}, {'hints': 3}, {'hints': {'weights': {'other': 1.0}}}):
        config.own = own_knobs
        with pytest.raises(UserError, match=r'own\.hints\.weights has no weight for state; set config\.own'):
            td_jax.train(config, tmp_path / 'run', **BROUGHT)
    config.own = {'hints': {'weights': {'state': -1.0}}}
    with pytest.raises(UserError, match=r'own\.hints\.weights\.state is -1\.0; it must be 0 or more'):
        td_jax.train(config, tmp_path / 'run', **BROUGHT)
    assert not (tmp_path / 'run').exists()


def test_a_callers_model_may_read_any_option(config_of_own_parts):
    """So every option is part of the identity of its runs."""

    def make_changed_config(**values):
        config = config_of_own_parts.copy_and_resolve_references()
        config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in values.items()})
        return config

    with own.use_parts(**BROUGHT):
        one = config_lib.digest(config_of_own_parts)
        assert config_lib.digest(make_changed_config(model__variant='S/32')) != one
        other = make_changed_config(own__hints__weights__state=4.0)
        assert config_lib.digest(other) != one
        differences = config_lib.differences(other, json.loads(config_lib.to_json(config_of_own_parts)))
        assert differences == {'own.hints.weights.state': (3.0, 4.0)}
        # Options of an unused method, as for td_jax's own methods.
        digests = {
            config_lib.digest(make_changed_config(method='ld', own__hints__weights__state=weight))
            for weight in (4.0, 5.0)
        }
        assert len(digests) == 1
