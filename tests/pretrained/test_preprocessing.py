"""How a Hugging Face folder says that images are shown, against its own arithmetic."""

import json

import numpy as np
import pytest

from td_jax.errors import UserError
from td_jax.pretrained import preprocessing
from td_jax.pretrained.architecture import Shown

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = {'image_mean': list(MEAN), 'image_std': list(STD)}


def read(**content):
    return preprocessing.read('folder/preprocessor_config.json', content, 32)


def test_what_a_file_does_not_say_is_as_in_transformers():
    assert read() == Shown((0.5,) * 3, (0.5,) * 3, 'bilinear_antialias')


@pytest.mark.parametrize(
    'content',
    [
        IMAGENET,
        {**IMAGENET, 'rescale_factor': 0.00392156862745098},
        {**IMAGENET, 'rescale_factor': 1 / 127.5},
        {**IMAGENET, 'do_rescale': False},
        {**IMAGENET, 'do_normalize': False},
        {**IMAGENET, 'do_rescale': False, 'do_normalize': False},
        {'image_mean': 0.25, 'image_std': 0.75},
    ],
)
def test_pixels_become_what_the_file_says(content):
    """Its two steps, one after the other, are our one."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3)).astype(np.float64)
    theirs = pixels * content.get('rescale_factor', 1 / 255) if content.get('do_rescale', True) else pixels
    if content.get('do_normalize', True):
        theirs = (theirs - content['image_mean']) / content['image_std']
    shown = read(**content)
    np.testing.assert_allclose((pixels / 255 - shown.image_mean) / shown.image_std, theirs, rtol=1e-6)


def test_the_usual_factor_changes_no_digit():
    shown = read(**IMAGENET, rescale_factor=0.0039215)
    assert shown.image_mean != MEAN
    for factor in (1 / 255, 0.00392156862745098, 0.003921568627):
        assert read(**IMAGENET, rescale_factor=factor)[:2] == (MEAN, STD)


@pytest.mark.parametrize('size', [32, {'height': 32, 'width': 32}])
def test_the_size_is_that_of_the_positions(size):
    assert read(size=size).resize == 'bilinear_antialias'


def test_images_that_are_not_resized_have_no_resize():
    assert read(do_resize=False, resample=3).resize is None


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ({'resample': 3}, 'resample is 3, bicubic; td_jax resizes by 2, bilinear'),
        ({'resample': 'x'}, "resample is 'x'; "),
        ({'do_center_crop': True}, 'do_center_crop is True, a step that td_jax does not take'),
        ({'do_pad': True}, 'do_pad is True, a step'),
        ({'size': {'shortest_edge': 32}}, r"size is \{'shortest_edge': 32\}; td_jax resizes to a square"),
        ({'size': {'height': 48, 'width': 48}}, 'the position embeddings are for 32 x 32 pixels'),
        ({'size': 48}, 'size is 48'),
        ({'image_mean': [0.5]}, r'image_mean is \[0.5\]; it has three numbers'),
        ({'image_std': [0.5, 0.5, 'x']}, 'image_std is .* three numbers'),
        ({'image_std': [0.5, 0.5, 0]}, 'standard deviation of .* above 0'),
        ({'image_mean': [123.7, 116.3, 103.5]}, 'from 0 to 1'),
        ({'rescale_factor': 0}, 'rescale_factor is 0; it is a number above 0'),
        ({'rescale_factor': float('nan')}, 'rescale_factor is nan'),
        ({'do_normalize': 'yes'}, "do_normalize is 'yes'; it is true or false"),
        ({'image_processor_type': 'CLIPImageProcessor'}, 'CLIPImageProcessor is not known, and .* do_resize'),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(content, words):
    with pytest.raises(UserError, match=words) as caught:
        read(**content)
    assert str(caught.value).startswith('folder/preprocessor_config.json: ')
    assert '\n' not in str(caught.value)


def test_another_processor_that_says_everything_is_taken_at_its_word():
    said = {**preprocessing.DEFAULTS, **IMAGENET, 'image_processor_type': 'CLIPImageProcessor'}
    assert read(**said) == Shown(MEAN, STD, 'bilinear_antialias')


@pytest.mark.parametrize('resize', ['bilinear_antialias', 'bilinear'])
def test_what_is_written_is_read_back(resize):
    content = json.loads(json.dumps(preprocessing.written(Shown(MEAN, STD, resize), 48)))
    assert content['do_resize'] == (resize == 'bilinear_antialias')
    back = preprocessing.read('file', content, 48)
    assert back == Shown(MEAN, STD, resize if content['do_resize'] else None)
