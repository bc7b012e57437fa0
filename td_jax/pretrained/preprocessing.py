"""How a checkpoint is shown images: what its files say of it, and what a student's say."""

import math
import numbers

from td_jax.errors import UserError
from td_jax.pretrained.architecture import Shown

# Of a Hugging Face folder.
FILE = 'preprocessor_config.json'
# What transformers' class for a ViT takes where the file does not say.
DEFAULTS = {
    'do_resize': True,
    'resample': 2,
    'do_center_crop': False,
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': [0.5] * 3,
    'image_std': [0.5] * 3,
}
# The same of those for DeiT and DINOv2; sizes are not among them, as they crop and that is refused.
_CROPPED = {**DEFAULTS, 'resample': 3, 'do_center_crop': True}
_CLIP = {'image_mean': [0.48145466, 0.4578275, 0.40821073], 'image_std': [0.26862954, 0.26130258, 0.27577711]}
PROCESSORS = {
    f'{name}{kind}': defaults
    for name, defaults in (('ViT', DEFAULTS), ('DeiT', _CROPPED), ('Bit', {**_CROPPED, **_CLIP}))
    for kind in ('ImageProcessor', 'ImageProcessorFast', 'FeatureExtractor')
}
# What somebody can do whose file has steps that td_jax does not take.
WAY_OUT = (
    'With do_resize and do_center_crop false in that file, dataset.resize and dataset.image_size say how '
    'images become as large as the model is shown them.'
)
# PIL's numbers of how it resizes -> names.
RESAMPLES = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming')
# What every image goes through here, too: three colours.
HARMLESS = ('do_convert_rgb',)


def read(path, content: dict, image_size: int, processor: str = 'ViTImageProcessor') -> Shown:
    """What a preprocessor_config.json says.

    A factor other than 1 / 255 and a step that is left out go into the mean and the standard deviation, so
    that (pixel / 255 - mean) / std is what the file describes.

    Args:
      path: of the file, for messages.
      content: of it.
      image_size: side in pixels of the images that the position embeddings are for.
      processor: a name of PROCESSORS, where the file names none.

    Raises:
      UserError: a step that td_jax does not take, or a value that cannot be; names the key.
    """
    fields = _fields(path, content, processor)
    for key in ('do_resize', 'do_rescale', 'do_normalize', 'do_center_crop'):
        if not isinstance(fields[key], bool):
            raise UserError(f'{path}: {key} is {fields[key]!r}; it is true or false.')
    others = [key for key in content if key.startswith('do_') and key not in (*DEFAULTS, *HARMLESS)]
    for key in ('do_center_crop', *others):
        value = fields.get(key, content.get(key))
        if value:
            hint = f' {WAY_OUT}' if key == 'do_center_crop' else ''
            raise UserError(f'{path}: {key} is {value!r}, a step that td_jax does not take.{hint}')
    factor = fields['rescale_factor'] if fields['do_rescale'] else 1.0
    if not _is_number(factor) or factor <= 0:
        raise UserError(f'{path}: rescale_factor is {factor!r}; it is a number above 0.')
    mean, std = (
        _colours(path, key, fields[key]) if fields['do_normalize'] else (neutral,) * 3
        for key, neutral in (('image_mean', 0.0), ('image_std', 1.0))
    )
    # (pixel factor - mean) / std in terms of pixel / 255; 1 / 255 may be written with fewer digits.
    scale = 255 * factor
    if not math.isclose(scale, 1, rel_tol=1e-6):
        mean, std = (tuple(value / scale for value in values) for values in (mean, std))
    if not all(0 <= value <= 1 for value in mean) or not all(value > 0 for value in std):
        raise UserError(
            f'{path}: rescale_factor, image_mean and image_std make a mean of {mean} and a standard '
            f'deviation of {std} of pixels between 0 and 1; these are from 0 to 1 and above 0.'
        )
    return Shown(mean, std, _resize(path, content, fields, image_size))


def _fields(path, content, processor):
    """The fields of DEFAULTS as the file says them."""
    kind = content.get('image_processor_type', content.get('feature_extractor_type', processor))
    missing = [key for key in DEFAULTS if key not in content]
    is_known = isinstance(kind, str) and kind in PROCESSORS
    if not is_known and missing:
        raise UserError(
            f'{path}: {kind} is not known, and what it takes for {", ".join(missing)} is not said; known: '
            f'{", ".join(PROCESSORS)}. Write these keys into the file.'
        )
    return {
        key: content.get(key, value) for key, value in (PROCESSORS[kind] if is_known else DEFAULTS).items()
    }


def _resize(path, content, fields, image_size):
    """A name of td_jax.data.images.RESIZES, or None where the file leaves resizing out."""
    if not fields['do_resize']:
        return None
    if fields['resample'] != RESAMPLES.index('bilinear'):
        number = fields['resample']
        is_known = number in range(len(RESAMPLES))
        name = f', {RESAMPLES[number]}' if is_known else ''
        raise UserError(f'{path}: resample is {number!r}{name}; td_jax resizes by 2, bilinear. {WAY_OUT}')
    size = content.get('size', image_size)
    sides = size if isinstance(size, dict) else {'height': size, 'width': size}
    if sides != {'height': image_size, 'width': image_size}:
        raise UserError(
            f'{path}: size is {size!r}; td_jax resizes to a square, and the position embeddings are for '
            f'{image_size} x {image_size} pixels. {WAY_OUT}'
        )
    return 'bilinear_antialias'


def _colours(path, key, value):
    """Three numbers, of a list of them or of one for all."""
    values = [value] * 3 if _is_number(value) else value
    if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
        raise UserError(f'{path}: {key} is {value!r}; it has three numbers, for red, green and blue.')
    return tuple(map(float, values))


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def written(shown: Shown, image_size: int) -> dict:
    """The content of a preprocessor_config.json.

    Hugging Face resizes with antialiasing alone. Where a model is shown something else, the file leaves
    resizing out.
    """
    return {
        'image_processor_type': 'ViTImageProcessor',
        'do_resize': shown.resize == 'bilinear_antialias',
        'size': {'height': image_size, 'width': image_size},
        'resample': DEFAULTS['resample'],
        'do_rescale': True,
        'rescale_factor': DEFAULTS['rescale_factor'],
        'do_normalize': True,
        'image_mean': list(shown.image_mean),
        'image_std': list(shown.image_std),
    }
