"""Decodes image files by PIL.

An image is turned upright by its EXIF, gets the colours of its palette, and is put on white where it is
transparent. Of 16 bits per colour the upper 8 are kept, of an animation or several pages the first.
"""

import io
from typing import BinaryIO

import numpy as np
import PIL.Image

from td_jax.errors import reason

# {PIL's name of a format: suffixes of its files}. The format of a file is read from its first bytes.
FORMATS = {
    'JPEG': ('.jpg', '.jpeg', '.jfif'),
    'PNG': ('.png',),
    'GIF': ('.gif',),
    'BMP': ('.bmp',),
    'WEBP': ('.webp',),
    'TIFF': ('.tif', '.tiff'),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# How pixels are made of a file, for those who do it without td_jax.
RULE = (
    'upright as its EXIF says, in the colours of its palette, on white where it is transparent, '
    'the upper 8 of 16 bits, the first of several frames'
)
# Tags of a TIFF, and a value of the second.
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
# The EXIF tag of an image's orientation, and the transposition that undoes it.
ORIENTATION = 0x0112
UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
WHITE = 255


def decode(content: bytes) -> np.ndarray:
    """Decodes a file of one of FORMATS.

    Args:
      content: of the file.

    Returns:
      [height, width, 3] uint8, red, green and blue.

    Raises:
      ValueError: it cannot be decoded; says why in one line.
    """
    try:
        with _open_image(io.BytesIO(content)) as image:
            image.load()
            transpose = UPRIGHT.get(_read_orientation(image))
            rgb = _convert_to_rgb(image)
            return np.asarray(rgb if transpose is None else rgb.transpose(transpose))
    # Each format of PIL has errors of its own.
    except Exception as error:
        raise ValueError(_explain(error)) from error


def check(file: BinaryIO):
    """Refuses a file whose first bytes say that it cannot be decoded; reads no pixels.

    Raises:
      ValueError: says why in one line.
    """
    try:
        _open_image(file).close()
    except Exception as error:
        raise ValueError(_explain(error)) from error


def _open_image(file):
    image = PIL.Image.open(file, formats=list(FORMATS))
    if image.mode in ('I', 'F'):
        kind = 'fractions' if image.mode == 'F' else 'whole numbers of 32 bits'
        raise ValueError(f'its pixels are {kind}, and nothing says which of them is white')
    return image


def _read_orientation(image):
    """Reads the orientation from EXIF; 1 (upright) where it is missing or damaged."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1


def _convert_to_rgb(image):
    """Converts an image of any mode to RGB, on white where it is transparent."""
    transparent_value = image.info.get('transparency')
    if image.mode.startswith('I;16'):
        values, tags = np.asarray(image), getattr(image, 'tag_v2', {})
        # Pillow reads 12 bits of a TIFF as they are, and does not invert one of 16 whose 0 is white.
        upper_bits = (values >> (tags.get(BITS_PER_SAMPLE, (16,))[0] - 8)).astype(np.uint8)
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            upper_bits = WHITE - upper_bits
        if transparent_value is not None:
            upper_bits[values == transparent_value] = WHITE
        return PIL.Image.fromarray(upper_bits).convert('RGB')
    if image.has_transparency_data:
        if isinstance(transparent_value, tuple) and max(transparent_value) > WHITE:
            raise ValueError('one of its colours of 16 bits is transparent')
        image = image.convert('RGBA')
        white = PIL.Image.new('RGBA', image.size, (WHITE,) * 4)
        return PIL.Image.alpha_composite(white, image).convert('RGB')
    return image if image.mode == 'RGB' else image.convert('RGB')


def _explain(error):
    if isinstance(error, PIL.UnidentifiedImageError):
        return f'it begins as no {", ".join(FORMATS)} does'
    return reason(error).rstrip('.')
