"""Tables and searches with a public teacher: one checkpoint for all, known by its fingerprint."""

import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
from etils import epath
from safetensors import numpy as safetensors

from td_jax import config as config_lib
from td_jax.configs import images, searches
from td_jax.errors import UserError
from td_jax.files import workdir
from td_jax.reproduction import cells, errors, journal, render, same_teacher, tables, tuning
from td_jax.training import assembly, public_teacher, teachers

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
TINY = GOLDEN / 'hf_dinov2_tiny'
COLUMNS = ['Drama'], ['CIFAR10']
NONE, PROBE = 'No distillation', 'Probe on the teacher'
ROWS = {NONE: {'method': 'supervised'}, PROBE: tables.PROBE, 'LD': {'method': 'ld'}, 'FD': {'method': 'fd'}}
SMALL = {
    **{'num_seeds': 2, 'num_steps': 2, 'batch_size': 4, 'eval_batch_size': 4, 'diagnostics': False},
    **{'optimizer.warmup_steps': 0, 'communication.hidden': 8, 'communication.message': 6},
    **{'model.layers': 1, 'model.split': 1, 'dataset.image_size': 16, 'dataset.examples_per_class': 3},
    **{'dataset.unlabelled': 'rest', 'unlabelled_batch_size': 2},
}


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """The config of a student that starts from a tiny public ViT, on twelve pictures of two classes."""
    folder = tmp_path_factory.mktemp('pictures')
    for part in ('train', 'test'):
        for i in range(12):
            file = folder / part / ('cat', 'dog')[i % 2] / f'{i:02}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng((i, len(part))).integers(0, 256, (20, 22, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(file)
    config = images.get_config()
    config.update_from_flattened_dict(SMALL | {'dataset.path': str(folder), 'teacher.labels': 'probe'})
    config.teacher.pretrained = str(TINY)
    set_keys = ['teacher.pretrained', *SMALL]
    return public_teacher.complete(config, epath.Path(folder) / 'run', set_keys)


@pytest.fixture
def other_checkpoint(tmp_path):
    """The same checkpoint with another number in it."""
    folder = tmp_path / 'other'
    shutil.copytree(TINY, folder)
    arrays = safetensors.load_file(folder / 'model.safetensors')
    name = min(name for name in arrays if name.endswith('layernorm.weight'))
    arrays[name] = arrays[name] + np.float32(0.5)
    safetensors.save_file(arrays, folder / 'model.safetensors')
    return str(folder)


@pytest.fixture
def table(base, monkeypatch):
    """A table of a public teacher is all there is, with nothing tuned."""
    tiny_table = tables.Table('Tiny', 'tiny', {'all': {}}, ROWS, NONE, students=2)
    monkeypatch.setattr(tables, 'TABLES', {'tiny': tiny_table})
    monkeypatch.setattr(cells, 'read_tuned', lambda name: {})
    monkeypatch.setattr(cells, 'base_config', lambda name: base.copy_and_resolve_references())
    return tiny_table


def find_cells(text, row):
    (line,) = [line for line in text.splitlines() if line.startswith(f'| {row} |')]
    return [cell.strip() for cell in line.strip('|').split('|')]


@pytest.mark.long
def test_a_table_names_its_teacher_and_accepts_no_other(table, base, other_checkpoint, tmp_path):
    root, moved_checkpoint = epath.Path(tmp_path / 'runs'), str(tmp_path / 'moved')
    shutil.copytree(TINY, moved_checkpoint)
    del table.rows['FD']
    results = cells.make(['tiny'], *COLUMNS, root, only_show=False, teacher=moved_checkpoint)
    # The fingerprint, computed from the original file.
    source = teachers.source_of(base, assembly.load_source(base, base.dataset))
    params = teachers.load(base, root, source).params
    fingerprint = same_teacher.fingerprint.of(params)
    rows = results['tiny']['all']
    assert {row: result['public_teacher'] for row, result in rows.items()} == {
        NONE: fingerprint,
        'LD': fingerprint,
    }
    (folder,) = (path.parent for path in (tmp_path / 'runs').rglob(workdir.RESULT) if 'ld-' in str(path))
    probes = json.loads((folder / workdir.RESULT).read_text())['probe']
    assert rows['LD']['probe'] == probes
    assert len(probes) == 2

    file = epath.Path(tmp_path / 'errors.npz')
    errors.write(file, results)
    index = str(np.load(file)['index'])
    assert fingerprint in index
    assert moved_checkpoint not in index
    assert str(TINY) not in index
    stored = errors.read(file)
    text = render.make(['tiny'], stored, *COLUMNS)
    assert text == render.make(['tiny'], results, *COLUMNS)
    assert f'(fingerprint of its parameters: `{fingerprint[:12]}`). Each student counts once.' in text
    assert find_cells(text, PROBE)[1] == '2'
    assert find_cells(text, PROBE)[2].startswith(f'{np.mean(probes):.4f}')
    # Two students of one public teacher count as two.
    assert find_cells(text, 'LD')[1] == '2'

    table.rows['FD'] = {'method': 'fd'}
    message = rf'had another teacher than .*other \(fingerprint {fingerprint[:12]} there, '
    with pytest.raises(UserError, match=message):
        cells.make(['tiny'], *COLUMNS, root, only_show=False, teacher=other_checkpoint)
    with pytest.raises(UserError, match=message):
        empty = epath.Path(tmp_path / 'empty')
        cells.make(
            ['tiny'], *COLUMNS, empty, only_show=False, stored_results=stored, teacher=other_checkpoint
        )
    assert not (tmp_path / 'empty').exists()


@pytest.mark.long
def test_a_search_records_its_teacher_and_takes_no_other(base, other_checkpoint, tmp_path):
    space = tuning.SearchSpace(
        base.copy_and_resolve_references,
        'classification',
        {'all': {}},
        ('all',),
        1,
        searches.IMAGE_WEIGHTS,
    )
    search = tuning.Search(space, {}, tables.USUAL, 1, 2, 2, str(TINY))
    places = [epath.Path(tmp_path / name) for name in ('runs', 'journals', 'choices.json')]
    list(tuning.tune(search, ['supervised', 'ld'], *places, 1))
    (line, *_) = (places[1] / 'images_unlabelled-ld.jsonl').read_text().splitlines()
    fingerprint = json.loads(line)['teacher']
    stored = journal.Journal(places[1] / 'images_unlabelled-ld.jsonl', is_writer=False)
    assert set(stored.teachers.values()) == {fingerprint}
    choices = places[2].read_text()
    assert json.loads(choices).keys() == {'images_unlabelled'}
    assert str(TINY) not in choices + line
    records = json.loads(choices)['images_unlabelled'][cells.SEARCHED]
    # The student without distillation starts from the teacher, too.
    assert {name: record['public_teacher'] for name, record in records.items()} == {
        'supervised': fingerprint,
        'ld': fingerprint,
    }
    with pytest.raises(UserError, match=rf'\(fingerprint {fingerprint[:12]} there'):
        more = search._replace(trials=2, teacher=other_checkpoint)
        list(tuning.tune(more, ['supervised', 'ld'], *places, 1))


def make_choices(teacher, methods):
    """Choices of one trial with a teacher of this fingerprint."""
    record = {'trials': 1, 'seeds': 2, 'steps': 2, 'fixed': {}, 'completed': [], 'at_last_step': False}
    records = {method: record | {'public_teacher': teacher} for method in methods}
    values = {method: {'num_steps': 2} for method in methods}
    chosen = values | {'supervised': {}, cells.SEARCHED: records | {'supervised': record}}
    return {'images_unlabelled': chosen}


def test_choices_of_another_teacher_are_refused(table, base, other_checkpoint, tmp_path, monkeypatch):
    """A table refuses them before training; choices of this teacher or of an unknown one are accepted."""
    root = epath.Path(tmp_path / 'runs')
    source = teachers.source_of(base, assembly.load_source(base, base.dataset))
    fingerprint = same_teacher.fingerprint.of(teachers.load(base, root, source).params)
    monkeypatch.setattr(cells, 'read_tuned', lambda name: make_choices(fingerprint, ('ld', 'fd')))
    reason = (
        rf'^the hyperparameters of ld under images_unlabelled in td_jax/configs/tuned/tiny\.json were chosen '
        rf'with another teacher than .*other \(fingerprint {fingerprint[:12]} there, '
        r'[0-9a-f]{12} here\); name'
    )
    with pytest.raises(UserError, match=reason):
        cells.make(['tiny'], *COLUMNS, root, only_show=False, teacher=other_checkpoint)
    assert not (tmp_path / 'runs').exists()
    same_teacher.check_choices([('ld', fingerprint, base), ('fd', '', base)])
    with pytest.raises(UserError, match=r'^fd were chosen with another teacher than'):
        same_teacher.check_choices([('fd', 'b' * 64, base)])


def test_a_search_on_top_of_choices_of_another_teacher_is_refused(base, tmp_path):
    """TD + LD starts from the choices of TD and of LD."""
    ranges = searches.IMAGE_WEIGHTS
    space = tuning.SearchSpace(lambda: base, 'classification', {'all': {}}, ('all',), 1, ranges)
    search = tuning.Search(space, {}, tables.USUAL, 1, 2, 2, str(TINY))
    places = [epath.Path(tmp_path / name) for name in ('runs', 'journals', 'choices.json')]
    workdir.write(places[2], json.dumps(make_choices('b' * 64, ('td', 'ld'))))
    with pytest.raises(UserError, match=r'^the hyperparameters of td in --output were chosen with another'):
        list(tuning.tune(search, ['td_ld'], *places, 1))
    assert not (tmp_path / 'runs' / 'images').exists()


def test_runs_of_one_table_had_one_teacher(base):
    part = same_teacher.part_of(base)
    known = [(part, 'td', 'a' * 64), ('', 'scratch', ''), (part, 'new', '')]
    assert same_teacher.check(known) == {part: ('td', 'a' * 64)}
    with pytest.raises(
        UserError, match=r'^td and ld had different teachers \(fingerprints a{12} and b{12}\)'
    ):
        same_teacher.check([*known, (part, 'ld', 'b' * 64)])


def test_a_location_without_effect_is_refused(base, small_config):
    with pytest.raises(UserError, match=r'^--teacher=photos has no effect: no run here has a public'):
        same_teacher.replace([small_config()], 'photos')
    untrained = base.copy_and_resolve_references()
    untrained.teacher.pretrained, untrained.teacher.control = '', 'untrained'
    own = base.copy_and_resolve_references()
    before = config_lib.digest(own)
    same_teacher.replace([own, untrained], 'photos')
    assert (own.teacher.pretrained, untrained.teacher.pretrained) == ('photos', '')
    assert config_lib.digest(own) == before
    assert same_teacher.part_of(untrained) == ''
