"""Reads the preprocessing of a checkpoint from its files, and writes that of a student."""

import math
import numbers
import sys

from td_jax.data.resizing import CROP_MODES
from td_jax.errors import UserError
from td_jax.pretrained.architecture import Preprocessing

# In a folder of Hugging Face.
FILE = 'preprocessor_config.json'
# The defaults of transformers' class for a ViT. Its size is that of the model.
DEFAULTS = {
    'do_resize': True,
    'size': None,
    'resample': 2,
    'do_center_crop': False,
    'crop_size': None,
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': [0.5] * 3,
    'image_std': [0.5] * 3,
    # Whether a single number is the size of a square, or of the shortest side.
    'default_to_square': True,
}
# The defaults for DeiT and DINOv2.
_DEIT = {**DEFAULTS, 'size': 256, 'resample': 3, 'do_center_crop': True, 'crop_size': 224}
_BIT = {
    **{**_DEIT, 'size': 224, 'default_to_square': False},
    'image_mean': [0.48145466, 0.4578275, 0.40821073],
    'image_std': [0.26862954, 0.26130258, 0.27577711],
}
PROCESSORS = {
    f'{name}{kind}': defaults
    for name, defaults in (('ViT', DEFAULTS), ('DeiT', _DEIT), ('Bit', _BIT))
    for kind in ('ImageProcessor', 'ImageProcessorFast', 'FeatureExtractor')
}
# The advice for files with steps that td_jax does not have.
WAY_OUT = (
    'With do_resize and do_center_crop false in that file, resize, crop_mode, crop_pct and image_size of '
    'teacher.dataset say how images become as large as the model is shown them.'
)
# Names of PIL's methods of resizing, by their numbers.
RESAMPLES = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming')
# The numbers that td_jax supports -> names of td_jax.data.resizing.RESIZES.
RESIZES = {2: 'bilinear_antialias', 3: 'bicubic_antialias'}
# Keys with which other classes change images, apart from those that begin with do_.
OF_OTHERS = 'crop_pct', 'offset', 'rescale_offset', 'size_divisor'
# Steps that td_jax always does: conversion to three colours.
HARMLESS = ('do_convert_rgb',)


def read(path, content: dict, image_size: int, processor: str = 'ViTImageProcessor') -> Preprocessing:
    """Makes a Preprocessing from a preprocessor_config.json.

    A factor other than 1 / 255 and omitted steps become part of the mean and the standard deviation, so that
    (pixel / 255 - mean) / std is as the file describes.

    Args:
      path: of the file, for messages.
      content: of the file.
      image_size: side in pixels of the images that the position embeddings fit.
      processor: a name of PROCESSORS, the default if the file names none.

    Raises:
      UserError: a step that td_jax does not have, or an invalid value; names the key.
    """
    fields = _read_fields(path, content, processor)
    for key in ('do_resize', 'do_rescale', 'do_normalize', 'do_center_crop'):
        if not isinstance(fields[key], bool):
            raise UserError(f'{path}: {key} is {fields[key]!r}; it is true or false.')
    for key in [key for key in content if key.startswith('do_') and key not in (*DEFAULTS, *HARMLESS)]:
        if content[key]:
            raise UserError(f'{path}: {key} is {content[key]!r}, a step that td_jax does not take.')
    factor = fields['rescale_factor'] if fields['do_rescale'] else 1.0
    if not _is_number(factor) or factor <= 0:
        raise UserError(f'{path}: rescale_factor is {factor!r}; it is a number above 0.')
    mean, std = (
        _read_colours(path, key, fields[key]) if fields['do_normalize'] else (neutral,) * 3
        for key, neutral in (('image_mean', 0.0), ('image_std', 1.0))
    )
    # (factor pixel - mean) / std in terms of pixel / 255; 1 / 255 may be written with fewer digits.
    scale = 255 * factor
    if not math.isclose(scale, 1, rel_tol=1e-6):
        mean, std = (tuple(value / scale for value in values) for values in (mean, std))
    if not all(0 <= value <= 1 for value in mean) or not all(value > 0 for value in std):
        raise UserError(
            f'{path}: rescale_factor, image_mean and image_std make a mean of {mean} and a standard '
            f'deviation of {std} of pixels between 0 and 1; these are from 0 to 1 and above 0.'
        )
    return Preprocessing(mean, std, *_read_resize(path, fields, image_size))


def _read_fields(path, content, processor):
    """Reads the fields of DEFAULTS from the content of a file."""
    kind = content.get('image_processor_type', content.get('feature_extractor_type', processor))
    is_known = isinstance(kind, str) and kind in PROCESSORS
    # null counts as missing.
    content_fields = {key: content[key] for key in DEFAULTS if content.get(key) is not None}
    unneeded = [
        *(['crop_size'] if content_fields.get('do_center_crop') is False else []),
        *(['default_to_square'] if isinstance(content_fields.get('size'), dict) else []),
    ]
    missing = [key for key in DEFAULTS if key not in (*content_fields, *unneeded)]
    if not is_known and missing:
        raise UserError(
            f'{path}: {kind} is not known, and what it takes for {", ".join(missing)} is not said; known: '
            f'{", ".join(PROCESSORS)}. Write these keys into the file.'
        )
    for key in OF_OTHERS if not is_known else ():
        if content.get(key):
            raise UserError(f'{path}: {key} is {content[key]!r}, a step of {kind} that td_jax does not take.')
    return {**(PROCESSORS[kind] if is_known else DEFAULTS), **content_fields}


def _read_resize(path, fields, image_size):
    """Reads (resize, crop_mode, crop_pct, image_size) of a Preprocessing."""
    if not fields['do_resize']:
        if fields['do_center_crop']:
            raise UserError(
                f'{path}: do_center_crop is True and do_resize is False: the middle of images of any size, '
                f'which td_jax does not take. {WAY_OUT}'
            )
        return None, 'squash', 1.0, 0
    number = fields['resample']
    if not _is_number(number) or number not in RESIZES:
        is_known = _is_number(number) and number in range(len(RESAMPLES))
        # JSON may hold 1.0.
        name = f', {RESAMPLES[int(number)]}' if is_known else ''
        known = ' or '.join(f'{known}, {RESAMPLES[known]}' for known in RESIZES)
        raise UserError(f'{path}: resample is {number!r}{name}; td_jax resizes by {known}. {WAY_OUT}')
    crop_mode, scaled = _read_size(path, fields, image_size)
    if not fields['do_center_crop']:
        if crop_mode == 'center':
            raise UserError(
                f'{path}: size is {fields["size"]!r} without do_center_crop: images that keep their shape, '
                f'and a model is shown squares. {WAY_OUT}'
            )
        return RESIZES[number], crop_mode, 1.0, scaled
    side = _read_square(path, 'crop_size', image_size if fields['crop_size'] is None else fields['crop_size'])
    if side > scaled:
        raise UserError(
            f'{path}: crop_size is {fields["crop_size"]!r}, larger than size, {fields["size"]!r}: an image '
            f'with a black border, which td_jax does not make. {WAY_OUT}'
        )
    return RESIZES[number], crop_mode, side / scaled, side


def _read_size(path, fields, image_size):
    """Reads (name of td_jax.data.resizing.CROP_MODES, size of the resized side)."""
    size = image_size if fields['size'] is None else fields['size']
    if isinstance(size, dict) and size.keys() == {'shortest_edge'}:
        return 'center', _read_square(path, 'size', size['shortest_edge'])
    if isinstance(size, dict) and size.keys() != {'height', 'width'}:
        raise UserError(
            f'{path}: size is {size!r}; td_jax knows a number, height and width, and shortest_edge. {WAY_OUT}'
        )
    is_square = isinstance(size, dict) or fields['default_to_square']
    return 'squash' if is_square else 'center', _read_square(path, 'size', size)


def _read_square(path, key, value, way_out=WAY_OUT):
    """Reads the side of a square, a positive number or equal height and width."""
    sides = value if isinstance(value, dict) else {'height': value, 'width': value}
    side = sides.get('height')
    is_count = isinstance(side, int) and not isinstance(side, bool) and side > 0
    if not is_count or sides != {'height': side, 'width': side}:
        raise UserError(
            f'{path}: {key} is {value!r}; a model is shown squares, of whole pixels. {way_out}'.rstrip()
        )
    return side


def _read_colours(path, key, value):
    """Reads three numbers from a list, or from one number for all."""
    values = [value] * 3 if _is_number(value) else value
    if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
        raise UserError(f'{path}: {key} is {value!r}; it has three numbers, for red, green and blue.')
    return tuple(map(float, values))


def _is_number(value):
    # An int may be larger than any float.
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


# timm's defaults of pretrained_cfg.
TIMM = {
    'input_size': [3, 224, 224],
    'interpolation': 'bicubic',
    'crop_pct': 0.875,
    'crop_mode': 'center',
    'mean': [0.485, 0.456, 0.406],
    'std': [0.229, 0.224, 0.225],
}
INTERPOLATIONS = {'bilinear': 'bilinear_antialias', 'bicubic': 'bicubic_antialias'}


def read_timm(path, config: dict) -> Preprocessing:
    """Makes a Preprocessing from timm's config.json.

    Args:
      path: of the file, for messages.
      config: its content.

    Raises:
      UserError: a step that td_jax does not have, or an invalid value; names the key.
    """
    content = timm_fields(path, config)
    fields = {key: default if content.get(key) is None else content[key] for key, default in TIMM.items()}
    size = fields['input_size']
    if not isinstance(size, list) or len(size) != 3 or size[0] != 3:
        raise UserError(f'{path}: input_size is {size!r}; it is [3, height, width], of three colours.')
    side = _read_square(path, 'input_size', {'height': size[1], 'width': size[2]}, way_out='')
    size = (config.get('model_args') or {}).get('img_size')
    if size is not None and content.get('fixed_input_size'):
        # The size that the model was made for; the other one may be that of the model it was tuned from.
        pair = {'height': size[0], 'width': size[1]} if isinstance(size, list) and len(size) == 2 else size
        side = _read_square(path, 'img_size', pair, way_out='')
    for key, known in (('interpolation', INTERPOLATIONS), ('crop_mode', CROP_MODES)):
        if not isinstance(fields[key], str) or fields[key] not in known:
            raise UserError(f'{path}: {key} is {fields[key]!r}; td_jax knows {", ".join(known)}.')
    share = fields['crop_pct']
    if not _is_number(share) or not 0 < share <= 1:
        raise UserError(f'{path}: crop_pct is {share!r}; td_jax takes a number above 0 and at most 1.')
    mean, std = (_read_colours(path, key, fields[key]) for key in ('mean', 'std'))
    if not all(0 <= value <= 1 for value in mean) or not all(value > 0 for value in std):
        raise UserError(f'{path}: mean is {mean} and std {std}; these are from 0 to 1 and above 0.')
    resize = INTERPOLATIONS[fields['interpolation']]
    return Preprocessing(mean, std, resize, fields['crop_mode'], float(share), side)


def timm_fields(path, config: dict) -> dict:
    """The content of pretrained_cfg in timm's config.json, or all of a config.json without one.

    Early versions of timm wrote both in one.

    Raises:
      UserError: it is not an object.
    """
    content = config.get('pretrained_cfg', config)
    if not isinstance(content, dict):
        raise UserError(f'{path}: pretrained_cfg is {content!r}; it is an object.')
    return content


def to_json(preprocessing: Preprocessing) -> dict:
    """Makes the content of a preprocessor_config.json.

    Hugging Face resizes like Pillow. If a model needs another method, the file leaves resizing out.
    """
    view = preprocessing.view()
    side, scaled, is_center = view.side, view.scaled_side, view.crop_mode == 'center'
    resample_numbers = {name: number for number, name in RESIZES.items()}
    is_resized, crops = view.resize in resample_numbers, not view.is_whole
    kind = 'Bit' if is_center else 'DeiT' if crops else 'ViT'
    return {
        'image_processor_type': f'{kind}ImageProcessor',
        'do_resize': is_resized,
        'size': {'shortest_edge': scaled} if is_center else {'height': scaled, 'width': scaled},
        'resample': resample_numbers.get(preprocessing.resize, DEFAULTS['resample']),
        'do_center_crop': is_resized and crops,
        **({'crop_size': {'height': side, 'width': side}} if crops else {}),
        'do_rescale': True,
        'rescale_factor': DEFAULTS['rescale_factor'],
        'do_normalize': True,
        'image_mean': list(preprocessing.image_mean),
        'image_std': list(preprocessing.image_std),
    }
