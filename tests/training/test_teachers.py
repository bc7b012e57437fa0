"""A public checkpoint as a teacher: what it is shown, what its outputs are called, what is refused of it."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import common
from td_jax.data import cifar
from td_jax.devices import sharding
from td_jax.errors import UserError
from td_jax.models import base
from td_jax.training import assembly, preflight, teachers

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
CLASSIFIER, BARE = GOLDEN / 'hf_vit_tiny_classifier', GOLDEN / 'hf_vit_tiny'
NAMES = ('plane', 'car', 'sea_bird', 'cat', 'deer', 'dog', 'frog')
HALF = (0.5, 0.5, 0.5)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def images(monkeypatch):
    """Takes the place of CIFAR: three images of each of seven classes in both parts."""
    pixels = np.random.default_rng(0).integers(0, 256, (21, 32, 32, 3), np.uint8)
    labels = np.tile(np.arange(7), 3)
    parts = {'train': pixels, 'test': pixels}, {'train': labels, 'test': labels}
    monkeypatch.setattr(cifar, 'read', lambda name: (*parts, NAMES))


@pytest.fixture
def changed(tmp_path):
    """A function (change, path) -> a Hugging Face folder whose tensors and config went through `change`.

    The third argument of `change` becomes the preprocessor_config.json, where it is not empty.
    """

    def make(change, path=CLASSIFIER):
        folder, said = tmp_path / 'changed', {}
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(path, folder)
        values = load_file(path / 'model.safetensors')
        config = json.loads((path / 'config.json').read_text())
        change(values, config, said)
        save_file({key: np.ascontiguousarray(x) for key, x in values.items()}, folder / 'model.safetensors')
        (folder / 'config.json').write_text(json.dumps(config))
        if said:
            (folder / 'preprocessor_config.json').write_text(json.dumps(said))
        return folder

    return make


def make_config(folder, **changes):
    """A run between two ViTs whose teacher is a folder."""
    config = common.get_config()
    config.method = 'ld'
    config.batch_size, config.eval_batch_size = 7, 7
    config.dataset.update({'name': 'cifar10', 'resize': 'bilinear_antialias'})
    for model in (config.model, config.teacher.model):
        model.update({'name': 'vit', 'width': 48, 'layers': 6, 'mlp': 96, 'heads': 4, 'patch': 8})
        model.activation = 'gelu'
    config.model.layers = 2
    config.teacher.pretrained = str(folder)
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return config


def loaded(config, tmp_path):
    """(the student's data, the teacher)"""
    source = assembly.load_source(config, config.dataset)
    return source, teachers.load(config, tmp_path, teachers.source_of(config, source))


def logits(teacher, examples):
    """What a teacher says of a student's examples."""
    inputs = teacher.source.inputs(teacher.source.tables, examples, None)
    return np.asarray(base.activations(teacher.model, teacher.params, inputs).logits)


def score(config, source, teacher):
    return teachers.facts(config, teacher, source, sharding.make_mesh(config))['score']


def rewritten(values, config, said):
    """The same function of pixels, for images that are shown by ImageNet's mean and deviation.

    2 p - 1 = 2 (deviation x + mean) - 1, which the first layer takes in.
    """
    name = 'vit.embeddings.patch_embeddings.projection'
    kernel = values[f'{name}.weight'].astype(np.float64)  # [width, 3, patch, patch]
    values[f'{name}.bias'] = (
        values[f'{name}.bias'] + (kernel.sum(axis=(2, 3)) * (2 * np.array(MEAN) - 1)).sum(axis=1)
    ).astype(np.float32)
    values[f'{name}.weight'] = (kernel * 2 * np.array(STD)[:, None, None]).astype(np.float32)
    said.update(image_mean=list(MEAN), image_std=list(STD))


def test_a_teacher_is_shown_images_as_it_expects_them(changed, tmp_path):
    source, plain = loaded(make_config(CLASSIFIER), tmp_path)
    config = make_config(
        changed(rewritten), teacher__dataset__image_mean=MEAN, teacher__dataset__image_std=STD
    )
    source, teacher = loaded(config, tmp_path)
    examples = {'image': source.evaluation['image']}
    np.testing.assert_allclose(logits(teacher, examples), logits(plain, examples), atol=1e-4)
    # And its student by its own.
    shown = source.inputs(source.tables, examples, None)['image']
    np.testing.assert_allclose(shown, examples['image'] / 127.5 - 1, atol=1e-6)


def test_a_teacher_that_is_shown_images_otherwise_is_refused(changed):
    config = make_config(changed(rewritten))
    source = assembly.load_source(config, config.dataset)
    with pytest.raises(UserError) as caught:
        teachers.source_of(config, source)
    assert 'teacher.dataset.image_mean is (0.485, 0.456, 0.406) there, (0.5, 0.5, 0.5) here' in str(
        caught.value
    )
    assert 'set teacher.dataset.image_mean=(0.485,0.456,0.406) ' in str(caught.value)
    config = make_config(CLASSIFIER, dataset__resize='bilinear')
    with pytest.raises(UserError, match=r'set dataset\.resize=bilinear_antialias$'):
        teachers.source_of(config, source)


ORDER = (3, 0, 6, 2, 5, 1, 4)


def named_otherwise(values, config, said):
    """The same classifier, its outputs in another order and called by their names."""
    for leaf in ('weight', 'bias'):
        values[f'classifier.{leaf}'] = values[f'classifier.{leaf}'][list(ORDER)]
    config['id2label'] = {str(i): NAMES[label].replace('_', ' ').title() for i, label in enumerate(ORDER)}


def test_a_heads_outputs_are_matched_by_name(changed, tmp_path, capsys):
    source, plain = loaded(make_config(CLASSIFIER), tmp_path)
    assert (
        'its 7 labels have no names and are taken to be plane, car, sea_bird, ...' in capsys.readouterr().err
    )
    config = make_config(changed(named_otherwise))
    source, teacher = loaded(config, tmp_path)
    assert 'no names' not in capsys.readouterr().err
    assert teacher.source.label_names == source.label_names == NAMES
    examples = {'image': source.evaluation['image']}
    np.testing.assert_allclose(logits(teacher, examples), logits(plain, examples), atol=1e-5)
    expected = (logits(plain, examples).argmax(axis=-1) == source.evaluation['labels']).mean()
    assert score(config, source, teacher) == pytest.approx(expected)


def of_other_things(values, config, said):
    config['id2label'] = {str(i): f'tree {i}' for i in range(7)}


def test_as_many_labels_of_another_task_are_others(changed, tmp_path):
    config = make_config(changed(of_other_things))
    source, teacher = loaded(config, tmp_path)
    assert teacher.source.label_names[:2] == ('tree 0', 'tree 1')
    assert score(config, source, teacher) is None
    with pytest.raises(UserError) as caught:
        preflight.check(config, tmp_path / 'run')
    assert (
        'predicts 7 labels (tree 0, tree 1, tree 2, ...) and the student 7 (plane, car, sea_bird, ...)'
        in str(caught.value)
    )
    config.teacher.labels = 'probe'
    assert preflight.check(config, tmp_path / 'run').teacher is not None


def without_head(values, config, said):
    del values['classifier.weight'], values['classifier.bias']


def with_zero_head(values, config, said):
    values['classifier.weight'] = np.zeros_like(values['classifier.weight'])


@pytest.mark.parametrize('change', [without_head, with_zero_head])
@pytest.mark.parametrize(
    ('method', 'labels', 'cure'),
    [
        ('ld', 'shared', 'ld.weights.logits to 0'),
        ('ld', 'auxiliary', 'ld.weights.logits to 0'),
        ('hybrid', 'shared', 'hybrid.weights.logits to 0'),
        ('td', 'auxiliary', 'td.weights.logits to 0'),
        ('td', 'shared', 'td.weights.logits to 0'),
    ],
)
def test_a_head_that_is_missing_is_named(changed, tmp_path, change, method, labels, cure):
    config = make_config(changed(change), method=method, teacher__labels=labels, td__weights__logits=1.0)
    with pytest.raises(UserError) as caught:
        preflight.check(config, tmp_path / 'run')
    assert 'the teacher has no head to make any: set teacher.labels to probe, or ' in str(caught.value)
    assert f'{cure}, or compare states with method fd or fitnet.' in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'changes',
    [
        {'method': 'ld', 'teacher__labels': 'probe'},
        {'method': 'fd'},
        {'method': 'td', 'td__weights__logits': 0.0},
    ],
)
def test_what_the_refusal_recommends_works(changed, tmp_path, changes):
    """The whole step is traced, with the teacher that has no head."""
    config = make_config(changed(without_head), **changes)
    plan = preflight.check(config, tmp_path / 'run')
    assert plan.teacher_source.label_names == ()
    state = assembly.abstract(config, plan.source, plan.teacher, plan.mesh)
    assert jax.tree.leaves(state.progress)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {'model__activation': 'gelu_tanh'},
            'model.activation is gelu_tanh and teacher.model.activation gelu, ',
        ),
        ({'model__epsilon': 1e-5}, 'set model.epsilon=1e-06, or model.initial=random.'),
        ({'dataset__image_mean': (0.1, 0.2, 0.3)}, 'set dataset.image_mean=(0.5,0.5,0.5), or '),
    ],
)
def test_a_student_that_starts_from_its_teacher_computes_the_same(tmp_path, changes, words):
    config = make_config(CLASSIFIER, model__initial='teacher')
    preflight.check(config, tmp_path / 'run')
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    with pytest.raises(UserError) as caught:
        preflight.check(config, tmp_path / 'run')
    assert words in str(caught.value)
