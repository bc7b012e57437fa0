"""From files to a program in another runtime: ratings, and images for models of different kinds."""

import csv
import json

import numpy as np
import PIL.Image
import pytest
from etils import epath

from td_jax.configs import images, ratings
from td_jax.exporting import formats
from td_jax.predicting import answers
from td_jax.training.run import train

pytestmark = pytest.mark.long
# A few steps of TD.
SMALL = {
    **{'method': 'td', 'num_seeds': 1, 'num_steps': 4, 'batch_size': 8, 'eval_batch_size': 8},
    **{'teacher.num_steps': 4, 'communication.hidden': 8, 'communication.message': 4, 'diagnostics': False},
    **{'optimizer.warmup_steps': 0, 'teacher.optimizer.warmup_steps': 0},
}
VIT = {'name': 'vit', 'layers': 1, 'width': 8, 'mlp': 8, 'heads': 2, 'patch': 4, 'split': 1}
RESNET = {'name': 'resnet', 'variant': 'R8x1', 'width': 8, 'split': 1}


def start_session(folder):
    onnxruntime = pytest.importorskip('onnxruntime')
    return onnxruntime.InferenceSession(folder / 'student.onnx')


def read_rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_ratings_with_ids_of_text(tmp_path):
    pytest.importorskip('jax2onnx')
    rng = np.random.default_rng(0)
    rows = ['reader,book,stars,day,about']
    for day in range(300):
        reader, book = rng.integers(15), rng.integers(12)
        about = 'crime|city' if book % 2 else 'city'
        rows.append(f'reader {reader},b-{book},{1 + (reader + book) % 5},{day},{about}')
    (tmp_path / 'own.csv').write_text('\n'.join(rows))
    config = ratings.get_config()
    config.update_from_flattened_dict(
        {
            **SMALL,
            **{'dataset.path': str(tmp_path / 'own.csv'), 'dataset.categories': ('about',)},
            **{'dataset.user_column': 'reader', 'dataset.item_column': 'book'},
            **{'dataset.rating_column': 'stars', 'dataset.timestamp_column': 'day'},
            **{'dataset.filter_column': 'about', 'dataset.filter_value': 'crime'},
            **{'model.hidden': (8, 4), 'teacher.model.hidden': (12, 8)},
        }
    )
    folder = epath.Path(tmp_path / 'run')
    train(config, folder)
    pairs = [('reader 3', 'b-1'), ('reader 14', 'b-11'), ('nobody', 'b-3'), ('reader 3', 'b-0'), ('x', 'y')]
    (tmp_path / 'asked.csv').write_text('\n'.join(['reader,book', *map(','.join, pairs)]))
    answers.predict(folder, epath.Path(tmp_path / 'asked.csv'), epath.Path(tmp_path / 'said.csv'))
    formats.export(folder, 'onnx')

    numbers = json.loads((folder / 'student_onnx' / 'vocabulary.json').read_text())
    inputs = {
        name: np.array([numbers[name].get(pair[i], -1) for pair in pairs], np.int32)
        for i, name in enumerate(('reader', 'book'))
    }
    (ratings_by_onnx,) = start_session(folder / 'student_onnx').run(None, inputs)
    rows_predicted = read_rows(tmp_path / 'said.csv')
    np.testing.assert_allclose(
        ratings_by_onnx, [float(row['rating']) for row in rows_predicted], rtol=1e-5, atol=1e-6
    )
    # The student knows only crime books: b-0 has no number, and is reported as unknown.
    assert [row['unknown'] for row in rows_predicted] == ['', '', 'reader', 'book', 'reader book']
    assert len(set(np.round(ratings_by_onnx, 6))) > 1


@pytest.mark.parametrize(
    ('teacher', 'student'), [(RESNET, VIT), (VIT, RESNET)], ids=['resnet-vit', 'vit-resnet']
)
def test_images_and_models_of_unlike_shapes(tmp_path, teacher, student):
    pytest.importorskip('jax2onnx')
    rng = np.random.default_rng(0)
    for name, lightest in (('dark things', 120), ('lights', 256)):
        (tmp_path / 'own' / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(lightest - 120, lightest, (20 + i, 24, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / 'own' / name / f'{i}.png')
    config = images.get_config()
    config.update_from_flattened_dict(
        {
            **SMALL,
            **{'dataset.path': str(tmp_path / 'own'), 'dataset.image_size': 16, 'model.initial': 'random'},
            **{f'model.{key}': value for key, value in student.items()},
            **{f'teacher.model.{key}': value for key, value in teacher.items()},
        }
    )
    folder = epath.Path(tmp_path / 'run')
    train(config, folder)
    answers.predict(folder, epath.Path(tmp_path / 'own' / 'lights'), epath.Path(tmp_path / 'said.csv'))
    formats.export(folder, 'onnx')

    session = start_session(folder / 'student_onnx')
    rows_predicted = read_rows(tmp_path / 'said.csv')
    assert len(rows_predicted) == 20
    for row in rows_predicted:
        with PIL.Image.open(tmp_path / 'own' / 'lights' / row['file']) as image:
            pixels = np.asarray(image.convert('RGB'))[None]
        (probabilities,) = session.run(['probabilities'], {'image': pixels})[0]
        expected = [float(row['p(dark things)']), float(row['p(lights)'])]
        np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=2e-6)
