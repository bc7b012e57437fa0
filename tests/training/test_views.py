"""Fixed views: drawn once per example, the same for both models, and computed once for many runs."""

import itertools
import zlib

import jax
import numpy as np
import PIL.Image
import pytest

from td_jax import config as config_lib
from td_jax import randomness
from td_jax.configs import images as images_config
from td_jax.data import base as data
from td_jax.devices import sharding
from td_jax.errors import UserError
from td_jax.files import array_store
from td_jax.models import base
from td_jax.training import assembly, dispatch, teacher_outputs, teachers, train_step
from td_jax.training.run import train

VIEWS = 3


@pytest.fixture
def own_programs():
    """Does nothing: the environment variable that is patched here is in no traced program."""


@pytest.fixture
def config(tmp_path):
    """A config in which a ViT of 16 pixels teaches one of 8, on twelve images of two classes."""
    for i in range(18):
        # The last six have no label, and are used where a test names their folder.
        file = tmp_path / (f'own/{"ab"[i % 2]}' if i < 12 else 'others') / f'{i:02}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (24, 20, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(file)
    config = images_config.get_config()
    config.update_from_flattened_dict(
        {
            **{'method': 'fitnet', 'num_seeds': 2, 'num_steps': 2, 'batch_size': 4, 'eval_batch_size': 4},
            **{'diagnostics': False, 'optimizer.warmup_steps': 0, 'save_every': 2, 'log_every': 2},
            **{'dataset.path': str(tmp_path / 'own'), 'dataset.image_size': 8},
            **{'teacher.dataset.image_size': 16, 'teacher.control': 'untrained', 'teacher.views': VIEWS},
            **{'teacher.inputs': 'varied', 'communication.hidden': 4, 'communication.message': 3},
        }
    )
    for model in (config.model, config.teacher.model):
        sizes = {'layers': 1, 'width': 8, 'heads': 2, 'mlp': 8, 'patch': 4, 'split': 0}
        model.update({'name': 'vit', 'initial': 'random', **sizes})
    return config


def make_view_key(image, view):
    """The key of a view, by the bytes of the student's image."""
    key = randomness.fold_name(jax.random.key(0), 'views')
    return jax.random.fold_in(jax.random.fold_in(key, np.uint32(zlib.crc32(image.tobytes()))), view)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'method': 'ld', 'ld.weights.logits': 0.0},
        {'dataset.examples_per_class': 3, 'dataset.unlabelled': 'rest', 'teacher.unlabelled_views': 2},
        {'dataset.unlabelled': 'others', 'teacher.unlabelled_views': 2},
    ],
    ids=['fitnet', 'none', 'rest', 'folder'],
)
def test_both_models_see_one_of_the_views_of_each_example(config, changes, tmp_path, monkeypatch):
    """Also where no term has a weight, so that the student is trained alone.

    Labelled examples may have more views than the others.
    """
    monkeypatch.chdir(tmp_path)
    config.update_from_flattened_dict(changes)
    unlabelled = config.dataset.unlabelled
    source = assembly.load_source(config, config.dataset)
    teacher = assembly.untrained_teacher(config, teachers.source_of(config, source))
    mesh, keys = sharding.make_mesh(config), dispatch.seed_keys(config)
    run = assembly.assemble(config, source, teacher, mesh)
    # Ten training images, of which each seed has drawn six, or all, with a label; and six other ones.
    count, size = 16 if unlabelled == 'others' else 10, 8 if unlabelled else 4
    assert run.constants.teacher_states.lower.shape[:2] == (2 if unlabelled else VIEWS, count)
    labelled = run.constants.labelled_states
    expected = {'': None, 'rest': (VIEWS, 2, 6), 'others': (VIEWS, 1, 10)}[unlabelled]
    assert (labelled and labelled.lower.shape[:3]) == expected
    student = assembly.build_model(config, config.model, source)
    step = train_step.make_step(student, source.task, len(source.label_names), config)
    parts = dispatch._Parts(step, source, teacher, config, mesh)

    @jax.jit
    def compute_by_hand(one, key):
        """(the student's input, the teacher's Activations) of one example."""
        theirs = teacher.source.inputs(teacher.source.tables, one, key)
        activations = base.activations(teacher.model, teacher.params, theirs)
        return source.inputs(source.tables, one, key)['image'][0], activations

    @jax.jit
    def draw_step(number):
        """({name: [seeds, batch, ...]}, the Batch of each seed) of step `number`."""
        batch = parts.draw_batch(run.constants, run.feed(keys, number), keys, number)
        batches = [
            parts.make_arguments(
                run.constants,
                train_step.TrainState(number, {}, {}),
                dispatch.split_key(keys[seed]),
                *jax.tree.map(lambda x, seed=seed: x[seed], batch),
            )[3]
            for seed in range(2)
        ]
        return batch[0], batches

    pixels_by_image, views_of_unlabelled = {}, set()
    for number in range(4):
        examples, batches = draw_step(number)
        for seed, i in itertools.product(range(2), range(size)):
            image, view = examples['image'][seed, i], int(examples[dispatch.VIEW][seed, i, 1])
            if i >= 4:
                views_of_unlabelled.add(view)
            one = {name: examples[name][seed, i][None] for name in ('image', data.TEACHER_IMAGE)}
            # The view depends on the student's image alone.
            pixels, activations = compute_by_hand(one, make_view_key(np.asarray(image), view))
            np.testing.assert_allclose(batches[seed].student_inputs['image'][i], pixels, atol=1e-5)
            for actual, expected in zip(batches[seed].teacher, activations, strict=True):
                np.testing.assert_allclose(actual[i], expected[0], rtol=1e-3, atol=1e-4)
            pixels_by_image.setdefault(np.asarray(image).tobytes(), {})[view] = np.asarray(pixels).tobytes()
    # All examples and all views occur, and the views of an example differ.
    assert len(pixels_by_image) == count and {
        view for views in pixels_by_image.values() for view in views
    } == {0, 1, 2}
    assert all(len(set(views.values())) == len(views) for views in pixels_by_image.values())
    assert max(map(len, pixels_by_image.values())) > 1
    assert views_of_unlabelled == ({0, 1} if unlabelled else set())


def test_as_many_views_of_unlabelled_examples_change_nothing(config, tmp_path, outcome):
    config.dataset.examples_per_class, config.dataset.unlabelled = 3, 'rest'
    train(config, tmp_path / 'unset')
    config.teacher.unlabelled_views = VIEWS
    train(config, tmp_path / 'set')
    unset, other = outcome(tmp_path / 'unset'), outcome(tmp_path / 'set')
    assert unset.pop('config') != other.pop('config')
    assert unset == other


def test_runs_share_the_outputs_for_views_and_are_as_without(config, tmp_path, monkeypatch, capsys, outcome):
    """Also seeds that draw other labelled examples, if the remaining ones are used unlabelled."""
    for model in (config.model, config.teacher.model):
        model.update({'name': 'mlp', 'hidden': (6, 4), 'split': 1})
    config.dataset.examples_per_class, config.dataset.unlabelled = 3, 'rest'
    train(config, tmp_path / 'without')
    monkeypatch.setenv(teacher_outputs.FOLDER, str(tmp_path / 'outputs'))
    for name, word, changes in (('first', 'kept in', {}), ('second', 'read from', {'seed': 5})):
        changed = config.copy_and_resolve_references()
        changed.update(changes)
        train(changed, tmp_path / name)
        assert f"the teacher's outputs: {word}" in capsys.readouterr().err
    assert outcome(tmp_path / 'without') == outcome(tmp_path / 'first')
    ((entry,),) = ([path.parent for path in (tmp_path / 'outputs').glob(f'*/{array_store.ABOUT}')],)
    assert np.load(entry / 'lower.npy').shape[0] == VIEWS


def test_outputs_for_more_views_of_labelled_examples_are_kept_too(config, tmp_path, monkeypatch, outcome):
    config.dataset.examples_per_class, config.dataset.unlabelled = 3, 'rest'
    config.teacher.unlabelled_views = 1
    train(config, tmp_path / 'without')
    monkeypatch.setenv(teacher_outputs.FOLDER, str(tmp_path / 'outputs'))
    for name in ('first', 'second'):
        train(config, tmp_path / name)
        assert outcome(tmp_path / name) == outcome(tmp_path / 'without')
    shapes = {np.load(path).shape[:2] for path in (tmp_path / 'outputs').glob('*/lower.npy')}
    # One view of all ten examples, and those of the six labelled ones of each of two seeds.
    assert shapes == {(1, 10), (VIEWS, 12)}


def test_views_of_a_stream_are_refused_and_of_clean_inputs_have_no_effect(config, tmp_path):
    config.dataset.kept_gb = 0.0
    with pytest.raises(UserError, match=r'teacher\.views is 3, which keeps .* set teacher\.views to 0\.'):
        train(config, tmp_path / 'run')
    config.teacher.inputs = 'clean'
    reasons = config_lib.explain_without_effect(config, ['teacher.views'])
    assert reasons == {'teacher.views': 'teacher.inputs is clean'}
    assert dispatch.count_views(config, object()) == 0


def test_equal_views_are_not_computed(config):
    """Without random variation a run is the same as without views; crops or mirroring make views differ."""
    for area, rate, count in ((1.0, 0.0, 0), (0.5, 0.0, VIEWS), (1.0, 0.5, VIEWS)):
        config.dataset.min_crop_area, config.dataset.mirror_rate = area, rate
        assert dispatch.count_views(config, object()) == count
        assert dispatch.keeps_states(config) == (count > 0)
    config.dataset.name = 'digits'
    assert not dispatch.keeps_states(config)
    reason = 'teacher.inputs is varied, and teacher.views has no effect'
    assert teacher_outputs.explain_unused(config) == reason
