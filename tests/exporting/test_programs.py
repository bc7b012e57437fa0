"""A student as a program on raw inputs: it runs without td_jax, with the same predictions."""

import json
import logging
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from td_jax.data import images as images_lib
from td_jax.data import resizing
from td_jax.data.resizing import View
from td_jax.errors import UserError
from td_jax.exporting import formats, optional, stablehlo
from td_jax.training import finished as finished_runs


def call_stablehlo(folder, inputs):
    exported = jax.export.deserialize(bytearray((folder / stablehlo.NAME).read_bytes()))
    return exported.call(inputs)


def call_onnx(folder, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / 'student.onnx')
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def call_saved_model(folder, inputs):
    import tensorflow as tf

    outputs = tf.saved_model.load(str(folder)).signatures['serving_default'](**inputs)
    return {name: tensor.numpy() for name, tensor in outputs.items()}


CALLS = {'stablehlo': call_stablehlo, 'onnx': call_onnx, 'saved_model': call_saved_model}
NEEDED = {
    'stablehlo': (),
    'onnx': ('jax2onnx', 'onnxruntime'),
    'saved_model': ('tensorflow', 'jax.experimental.jax2tf'),
}


@pytest.fixture
def write_program_of(tmp_path):
    """A function (format, finished run) -> the folder with its student; skips if a library is missing."""

    def write_program(name, finished):
        for library in NEEDED[name]:
            pytest.importorskip(library, exc_type=ImportError)
        try:
            formats.FORMATS[name].write(tmp_path / name, finished)
        except UserError as error:
            if 'cannot run what this JAX writes' in str(error):
                pytest.skip(str(error))
            raise
        return tmp_path / name

    return write_program


def read_signature(folder):
    return json.loads((folder / 'signature.json').read_text(encoding='utf-8'))


# --- Images ----------------------------------------------------------------------------------------

SIZES = (2, 45, 61), (1, 32, 32), (3, 1, 90)


def make_pixels(shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def resize(pixels, view, is_rounded):
    """Resizes by Pillow or, for plain bilinear, by TensorFlow."""
    import tensorflow as tf

    if view.resize != 'bilinear':
        return np.stack([resizing.resize_by_pillow(image, view) for image in pixels]).astype(np.float32)
    resized_pixels = tf.image.resize(pixels.astype(np.float32), (view.side,) * 2).numpy()
    return np.floor(resized_pixels + 0.5) if is_rounded else resized_pixels


@pytest.mark.parametrize(
    ('name', 'view'),
    [
        ('stablehlo', View(32, 'bicubic_antialias', 'center', 0.8)),
        ('onnx', View(32, 'bicubic_antialias', 'center', 0.8)),
        ('onnx', View(32, 'bilinear')),
        ('saved_model', View(32, 'bilinear_antialias')),
    ],
)
def test_images_of_any_size_and_number_go_in(name, view, finished_vit, write_program_of, logits_of):
    finished = finished_vit(
        dataset={'resize': view.resize, 'crop_mode': view.crop_mode, 'crop_pct': view.crop_pct}
    )
    folder = write_program_of(name, finished)
    for shape in SIZES:
        pixels = make_pixels(shape)
        outputs = CALLS[name](folder, {'image': pixels})
        model_pixels = resize(pixels, view, is_rounded=False)
        expected = logits_of(finished, (model_pixels / 127.5 - 1).astype(np.float32))
        # A sum that is rounded to the other neighbour is another byte.
        nearly = 1e-4 if view.resize == 'bilinear' else 5e-3
        np.testing.assert_allclose(outputs['logits'], expected, atol=nearly * np.abs(expected).max())
        shares = np.exp(expected - expected.max(axis=1, keepdims=True))
        np.testing.assert_allclose(
            outputs['probabilities'], shares / shares.sum(axis=1, keepdims=True), atol=10 * nearly
        )
    check_empty(name, folder)
    signature = read_signature(folder)
    assert (signature['labels'], signature['batch']) == (
        ['bird', 'plane'],
        'any number of examples from 1 on',
    )
    image = signature['inputs']['image']
    assert (image['type'], image['shape']) == ('uint8', ['batch', 'height', 'width', 3])
    assert image['meaning'].endswith(f'; inside, {view.describe()}')
    assert 'of a file upright as its EXIF says' in image['meaning']
    assert 'on white where it is transparent' in image['meaning']
    assert {output: port['shape'] for output, port in signature['outputs'].items()} == {
        'logits': ['batch', 2],
        'probabilities': ['batch', 2],
    }


def check_empty(name, folder):
    """Checks that no images give no predictions or are refused, and an image without pixels is refused."""
    none, flat = np.zeros((0, 5, 7, 3), np.uint8), np.zeros((1, 0, 7, 3), np.uint8)
    if name == 'onnx':
        # In another process, because it once crashed the process.
        code = (
            'import numpy, onnxruntime, sys\n'
            'session = onnxruntime.InferenceSession(sys.argv[1])\n'
            'image = numpy.zeros((0, 5, 7, 3), numpy.uint8)\n'
            'print([output.shape for output in session.run(None, {"image": image})])'
        )
        command = [sys.executable, '-c', code, folder / 'student.onnx']
        completed = subprocess.run(command, capture_output=True, text=True, check=True)
        assert completed.stdout == '[(0, 2), (0, 2)]\n'
    else:
        with pytest.raises(Exception, match="Expected value >= 1 for dimension variable 'batch'"):
            CALLS[name](folder, {'image': none})
    with pytest.raises(Exception, match=r'idx=0 must be|Expected value >= 1 for dimension variable .height'):
        CALLS[name](folder, {'image': flat})


def test_images_that_are_kept_resized_are_rounded(finished_vit, write_program_of, logits_of):
    """Images of ImageNet are rounded to bytes, which stream to the device."""
    finished = finished_vit()
    dataset = finished.config.dataset
    picture = images_lib.picture_of(dataset, dataset, is_native=False)
    finished = finished._replace(source=finished.source._replace(picture=picture))
    pixels = make_pixels((2, 45, 61))
    model_pixels = resize(pixels, View(32, 'bilinear'), is_rounded=True)
    expected = logits_of(finished, (model_pixels / 127.5 - 1).astype(np.float32))
    for name in ('stablehlo', 'onnx'):
        logits = CALLS[name](write_program_of(name, finished), {'image': pixels})['logits']
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_bfloat16_stays_or_is_reported(finished_vit, write_program_of, logits_of):
    finished = finished_vit('bfloat16')
    pixels = make_pixels((2, 32, 32))
    expected = logits_of(finished, (pixels / 127.5 - 1).astype(np.float32))
    for name, computes, note in (('stablehlo', 'bfloat16', None), ('onnx', 'float32', 'computes in float32')):
        folder = write_program_of(name, finished)
        logits = CALLS[name](folder, {'image': pixels})['logits']
        np.testing.assert_allclose(logits, expected, atol=5e-2 * np.abs(expected).max())
        assert read_signature(folder)['computes_in'] == computes
        actual_note = formats.FORMATS[name].note(finished.config)
        assert actual_note is None if note is None else note in actual_note


def test_a_program_of_digits_runs_where_td_jax_is_not(mlp_run, tmp_path, logits_of):
    folder = tmp_path / 'made'
    formats.export(mlp_run, 'stablehlo', folder)
    digits = make_pixels((3, 8, 8))
    np.save(tmp_path / 'digits.npy', digits)
    # In another process, which has the file and nothing else.
    code = (
        'import jax.export, json, numpy as np, sys\n'
        'program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))\n'
        'image = np.load(sys.argv[2])\n'
        'print(program.platforms)\n'
        'print(json.dumps([program.call({"image": image[:n]})["logits"].tolist() for n in (2, 3)]))'
    )
    completed = subprocess.run(
        [sys.executable, '-c', code, folder / stablehlo.NAME, tmp_path / 'digits.npy'],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    platforms, logits = completed.stdout.splitlines()
    assert platforms == "('cpu', 'cuda', 'tpu')"
    two, three = json.loads(logits)
    model_inputs = digits.astype(np.float32).mean(axis=3).reshape(3, 64) / 255
    expected = logits_of(finished_runs.load(mlp_run), model_inputs)
    np.testing.assert_allclose(three, expected, atol=1e-5)
    np.testing.assert_allclose(two, expected[:2], atol=1e-5)


# --- Ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', CALLS)
def test_ids_go_in_by_their_numbers(name, recommender, rating_by_hand, write_program_of):
    folder = write_program_of(name, recommender)
    vocabulary = json.loads((folder / 'vocabulary.json').read_text(encoding='utf-8'))
    assert vocabulary == {
        'user_id': {'196': 0, 'ann': 1, '7': 2},
        'movie_id': {'242': 0, '302': 1, 'x y': 2, '50': 3},
    }
    pairs = [(0, 0), (1, 2), (2, 1), (0, 3), (None, 1), (1, None), (None, None)]
    expected = [rating_by_hand(recommender, *pair) for pair in pairs]
    for count, unknown in ((7, -1), (7, 4), (1, -1)):
        numbers = np.array([[unknown if n is None else n for n in pair] for pair in pairs[:count]], np.int32)
        outputs = CALLS[name](folder, {'user_id': numbers[:, 0], 'movie_id': numbers[:, 1]})
        np.testing.assert_allclose(outputs['rating'], expected[:count], rtol=1e-5, atol=1e-5)
    signature = read_signature(folder)
    for column in ('user_id', 'movie_id'):
        port = signature['inputs'][column]
        assert (port['type'], port['shape']) == ('int32', ['batch'])
        assert '-1 for any other' in port['meaning']
    assert signature['outputs']['rating']['shape'] == ['batch']
    assert 'not clipped' in signature['outputs']['rating']['meaning']


# --- A data set without a description of its inputs -------------------------------------------------


@pytest.mark.parametrize('name', ['stablehlo', 'onnx'])
def test_without_more_a_program_takes_what_the_model_is_given(mlp_run, write_program_of, logits_of, name):
    finished = finished_runs.load(mlp_run)

    def inputs(tables, examples, key):
        return {'half': examples['image'][:, :32], 'rest': examples['image'][:, 32:]}

    def lower_joined(params, inputs, key=None):
        image = jax.numpy.concatenate([inputs['half'], inputs['rest']], axis=1)
        return finished.student.lower(params, {'image': image}, key)

    source = finished.source._replace(inputs=inputs, picture=None)
    folder = write_program_of(
        name, finished._replace(student=finished.student._replace(lower=lower_joined), source=source)
    )
    image = np.linspace(0, 1, 3 * 64, dtype=np.float32).reshape(3, 64)
    logits = CALLS[name](folder, inputs(None, {'image': image}, None))['logits']
    np.testing.assert_allclose(logits, logits_of(finished, image), atol=1e-6)
    assert read_signature(folder)['inputs']['half'] == {
        'type': 'float32',
        'shape': ['batch', 32],
        'meaning': 'what the model is given in an evaluation',
    }


# --- Refusals --------------------------------------------------------------------------------------


def test_what_jax2onnx_cannot_convert_or_gets_wrong_is_one_line(mlp_run, tmp_path, monkeypatch):
    jax2onnx = pytest.importorskip('jax2onnx', exc_type=ImportError)
    pytest.importorskip('onnxruntime')
    convert = jax2onnx.to_onnx

    def raise_error(*arguments, **named):
        raise KeyError('no such operation\nand more of it\n\na page')

    def convert_to_double(run, *arguments, **named):
        return convert(lambda *inputs: tuple(2 * output for output in run(*inputs)), *arguments, **named)

    for wrong, message in (
        (raise_error, r'jax2onnx cannot convert this student \(.*no such operation'),
        (convert_to_double, 'the logits of what jax2onnx makes of this student are others than its own'),
    ):
        monkeypatch.setattr(jax2onnx, 'to_onnx', wrong)
        with pytest.raises(UserError, match=f'^--format=onnx: {message}') as error_info:
            formats.export(mlp_run, 'onnx', tmp_path / 'made')
        assert '; use --format=stablehlo or --format=saved_model.' in str(error_info.value)
        assert len(str(error_info.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('name', 'library', 'remedy'),
    [
        ('onnx', 'onnx', 'pip install onnx onnx_ir onnxruntime && pip install --no-deps jax2onnx'),
        ('saved_model', 'tensorflow', 'pip install tensorflow'),
    ],
)
def test_a_library_that_is_missing_is_one_line(mlp_run, tmp_path, monkeypatch, name, library, remedy):
    # None makes an import fail.
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f'^--format={name} needs {library}, which cannot .*{remedy}'):
        formats.export(mlp_run, name, tmp_path / 'made')
    assert list(tmp_path.iterdir()) == []


def test_what_a_broken_library_logs_is_dropped_and_logging_continues(caplog, tmp_path, monkeypatch):
    (tmp_path / 'loud_and_broken.py').write_text(
        'import logging\nlogging.warning("part")\nraise ValueError("x")'
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r'cannot be imported here \(x\)'):
        optional.import_module('loud_and_broken', 'onnx')
    assert caplog.records == []
    logging.getLogger('of somebody').warning('else')
    assert [record.message for record in caplog.records] == ['else']


def test_a_saved_model_that_tensorflow_cannot_run_is_refused(tmp_path, recommender, monkeypatch):
    tf = pytest.importorskip('tensorflow')
    pytest.importorskip('jax.experimental.jax2tf', exc_type=ImportError)

    def raise_error(folder):
        raise tf.errors.InvalidArgumentError(None, None, 'unregistered operation')

    monkeypatch.setattr(tf.saved_model, 'load', raise_error)
    with pytest.raises(
        UserError, match=r'^--format=saved_model: TensorFlow .* cannot run what this JAX writes'
    ):
        formats.FORMATS['saved_model'].write(tmp_path / 'student', recommender)
