"""The preprocessing of a Hugging Face folder, against its own arithmetic."""

import json

import numpy as np
import pytest

from td_jax import pretrained
from td_jax.errors import UserError
from td_jax.pretrained import preprocessing
from td_jax.pretrained.architecture import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = {'image_mean': list(MEAN), 'image_std': list(STD)}


def read_preprocessing(**content):
    return preprocessing.read('folder/preprocessor_config.json', content, 32)


def test_what_a_file_does_not_say_is_as_in_transformers():
    assert read_preprocessing() == Preprocessing((0.5,) * 3, (0.5,) * 3, 'bilinear_antialias', image_size=32)


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
    """Rescaling and normalising, one after the other, equal our single step."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3)).astype(np.float64)
    theirs = pixels * content.get('rescale_factor', 1 / 255) if content.get('do_rescale', True) else pixels
    if content.get('do_normalize', True):
        theirs = (theirs - content['image_mean']) / content['image_std']
    ours = read_preprocessing(**content)
    np.testing.assert_allclose((pixels / 255 - ours.image_mean) / ours.image_std, theirs, rtol=1e-6)


def test_the_usual_factor_changes_no_digit():
    assert read_preprocessing(**IMAGENET, rescale_factor=0.0039215).image_mean != MEAN
    for factor in (1 / 255, 0.00392156862745098, 0.003921568627):
        assert read_preprocessing(**IMAGENET, rescale_factor=factor)[:2] == (MEAN, STD)


# The published files of facebook/dinov2-small, facebook/deit-small-patch16-224,
# google/vit-base-patch16-224 and facebook/dinov2-with-registers-small, that as transformers 5 writes it.
DINOV2 = {
    'crop_size': {'height': 224, 'width': 224},
    'do_center_crop': True,
    'do_convert_rgb': True,
    'do_normalize': True,
    'do_rescale': True,
    'do_resize': True,
    'image_mean': list(MEAN),
    'image_processor_type': 'BitImageProcessor',
    'image_std': list(STD),
    'resample': 3,
    'rescale_factor': 0.00392156862745098,
    'size': {'shortest_edge': 256},
}
DEIT = {
    'crop_size': 224,
    'do_center_crop': True,
    'do_normalize': True,
    'do_resize': True,
    'feature_extractor_type': 'DeiTFeatureExtractor',
    'image_mean': list(MEAN),
    'image_std': list(STD),
    'resample': 3,
    'size': 256,
}
VIT = {
    'do_normalize': True,
    'do_resize': True,
    'image_mean': [0.5] * 3,
    'image_std': [0.5] * 3,
    'size': 224,
}
REGISTERS = {
    **DINOV2,
    'default_to_square': False,
    'data_format': 'channels_first',
    'do_pad': None,
    'pad_size': None,
    'device': None,
    'return_tensors': None,
    'image_processor_type': 'BitImageProcessorFast',
}
CENTER = ('bicubic_antialias', 'center', 0.875, 224)


@pytest.mark.parametrize(
    ('content', 'processor', 'expected'),
    [
        (DINOV2, 'ViTImageProcessor', (MEAN, STD, *CENTER)),
        (REGISTERS, 'ViTImageProcessor', (MEAN, STD, *CENTER)),
        (DEIT, 'ViTImageProcessor', (MEAN, STD, 'bicubic_antialias', 'squash', 0.875, 224)),
        (VIT, 'ViTImageProcessor', ((0.5,) * 3, (0.5,) * 3, 'bilinear_antialias', 'squash', 1.0, 224)),
        # The defaults of a class, for what the file leaves out; BitImageProcessor has CLIP's mean.
        ({**IMAGENET, 'size': 96}, 'BitImageProcessor', None),
        (IMAGENET, 'DeiTImageProcessor', (MEAN, STD, 'bicubic_antialias', 'squash', 0.875, 224)),
        (IMAGENET, 'BitImageProcessor', (MEAN, STD, 'bicubic_antialias', 'center', 1.0, 224)),
        (
            {**DINOV2, 'size': 235, 'crop_size': 224},
            '',
            (MEAN, STD, 'bicubic_antialias', 'center', 224 / 235, 224),
        ),
        (
            {**DINOV2, 'size': {'height': 64, 'width': 64}, 'crop_size': 56, 'resample': 2},
            '',
            (MEAN, STD, 'bilinear_antialias', 'squash', 0.875, 56),
        ),
        (
            {**DEIT, 'do_center_crop': False, 'size': {'height': 40, 'width': 40}, 'rescale_factor': None},
            '',
            (MEAN, STD, 'bicubic_antialias', 'squash', 1.0, 40),
        ),
        ({**DINOV2, 'do_resize': False, 'do_center_crop': False}, '', (MEAN, STD, None, 'squash', 1.0, 0)),
    ],
)
def test_what_is_published_is_honoured(content, processor, expected):
    if expected is None:
        with pytest.raises(UserError, match=r'crop_size is 224, larger than size, 96'):
            preprocessing.read('folder', content, 224, processor)
        return
    result = preprocessing.read('folder', content, 224, processor)
    assert result == Preprocessing(*expected)
    if result.resize:
        view = result.view()
        size = content.get('size', {'DeiTImageProcessor': 256}.get(processor, 224))
        size = size if isinstance(size, int) else max(size.values())
        assert view.scaled_side == size
        # It is the same after writing and reading.
        assert preprocessing.read('folder', preprocessing.to_json(result), 32) == result


@pytest.mark.parametrize('name', ['dinov2_small_saliency'])
def test_a_real_folder_is_honoured(foundation, name):
    folder = foundation(name)
    content = json.loads((folder / 'preprocessor_config.json').read_text())
    assert content == DINOV2
    result = pretrained.read(str(folder)).preprocessing
    assert result == Preprocessing(MEAN, STD, *CENTER)


@pytest.mark.parametrize('size', [32, {'height': 32, 'width': 32}, None])
def test_a_size_may_be_a_number_or_two_or_that_of_the_model(size):
    assert read_preprocessing(size=size).resize == 'bilinear_antialias'
    assert read_preprocessing(size=size).image_size == 32


def test_images_that_are_not_resized_have_no_resize():
    assert read_preprocessing(do_resize=False, resample=3).resize is None


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ({'resample': 1}, 'resample is 1, lanczos; td_jax resizes by 2, bilinear or 3, bicubic'),
        ({'resample': 1.0}, r'resample is 1\.0, lanczos; td_jax resizes by 2'),
        ({'resample': 'x'}, "resample is 'x'; "),
        ({'resample': True}, 'resample is True; '),
        ({'resample': [3]}, r'resample is \[3\]; '),
        ({'do_pad': True}, 'do_pad is True, a step'),
        ({'do_center_crop': True, 'do_resize': False}, 'do_center_crop is True and do_resize is False'),
        ({'do_center_crop': True, 'crop_size': 33}, 'crop_size is 33, larger than size'),
        ({'do_center_crop': True, 'crop_size': {'height': 32, 'width': 24}}, 'crop_size is .* squares'),
        ({'size': {'shortest_edge': 32}}, r"size is \{'shortest_edge': 32\} without do_center_crop"),
        ({'size': {'shortest_edge': 32, 'longest_edge': 64}}, 'size is .*; td_jax knows a number, height'),
        ({'size': {'height': 48, 'width': 40}}, 'size is .* squares, of whole pixels'),
        ({'size': 0}, 'size is 0; '),
        ({'image_mean': [0.5]}, r'image_mean is \[0.5\]; it has three numbers'),
        ({'image_std': [0.5, 0.5, 'x']}, 'image_std is .* three numbers'),
        ({'image_std': [0.5, 0.5, 0]}, 'standard deviation of .* above 0'),
        ({'image_mean': [123.7, 116.3, 103.5]}, 'from 0 to 1'),
        ({'rescale_factor': 0}, 'rescale_factor is 0; it is a number above 0'),
        ({'rescale_factor': float('nan')}, 'rescale_factor is nan'),
        ({'rescale_factor': 10**400}, 'rescale_factor is 1000'),
        ({'do_normalize': 'yes'}, "do_normalize is 'yes'; it is true or false"),
        ({'image_processor_type': 'CLIPImageProcessor'}, 'CLIPImageProcessor is not known, and .* do_resize'),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(content, words):
    with pytest.raises(UserError, match=words) as error_info:
        read_preprocessing(**content)
    assert str(error_info.value).startswith('folder/preprocessor_config.json: ')
    assert '\n' not in str(error_info.value)


def test_another_processor_that_says_everything_is_taken_at_its_word():
    content = {**preprocessing.DEFAULTS, **IMAGENET, 'size': 24, 'image_processor_type': 'CLIPImageProcessor'}
    assert read_preprocessing(**content) == Preprocessing(MEAN, STD, 'bilinear_antialias', image_size=24)
    content |= {'size': {'shortest_edge': 30}, 'do_center_crop': True}
    del content['default_to_square']
    with pytest.raises(UserError, match='what it takes for crop_size is not said'):
        read_preprocessing(**content)
    content |= {'size': 24, 'default_to_square': True, 'do_center_crop': False}
    with pytest.raises(UserError, match=r'crop_pct is 0\.875, a step of CLIPImageProcessor that td_jax does'):
        read_preprocessing(**content, crop_pct=0.875)
    # A ViT's own class does not look at it.
    assert read_preprocessing(crop_pct=0.875) == read_preprocessing()


@pytest.mark.parametrize('resize', ['bilinear_antialias', 'bilinear'])
def test_what_is_written_is_read_back(resize):
    stored = preprocessing.to_json(Preprocessing(MEAN, STD, resize, image_size=48))
    content = json.loads(json.dumps(stored))
    assert content['do_resize'] == (resize == 'bilinear_antialias')
    restored = preprocessing.read('file', content, 48)
    resizing = (resize, 'squash', 1.0, 48) if content['do_resize'] else (None,)
    assert restored == Preprocessing(MEAN, STD, *resizing)
