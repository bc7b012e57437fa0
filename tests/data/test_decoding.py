"""Decoded pixels against PIL, against bytes written by hand and against colours computed by hand."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from td_jax.data import decoding

RNG = np.random.default_rng(0)
COLOURS = PIL.Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8))


def encode(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def decode_with_pil(content):
    return np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(content))).convert('RGB'))


def encode_png(colour, bits, rows, *chunks):
    """A PNG of the given rows, written by its specification."""

    def chunk(name, content):
        return (
            struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))
        )

    width = 8 * len(rows[0]) // (bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    parts = [(b'IHDR', struct.pack('>IIBBBBB', width, len(rows), bits, colour, 0, 0, 0)), *chunks]
    parts += [(b'IDAT', zlib.compress(b''.join(b'\0' + row for row in rows))), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


def pack_words(*numbers):
    return struct.pack(f'>{len(numbers)}H', *numbers)


# --- As PIL does -----------------------------------------------------------------------------------

PLAIN = {
    'jpeg': encode(COLOURS, 'JPEG'),
    'progressive jpeg': encode(COLOURS, 'JPEG', progressive=True, subsampling=2),
    'grey jpeg': encode(COLOURS.convert('L'), 'JPEG'),
    'cmyk jpeg': encode(COLOURS.convert('CMYK'), 'JPEG'),
    'png': encode(COLOURS, 'PNG'),
    'grey png': encode(COLOURS.convert('L'), 'PNG'),
    'png of a palette': encode(COLOURS.convert('P'), 'PNG'),
    'png of one bit': encode(COLOURS.convert('1'), 'PNG'),
    'gif': encode(COLOURS, 'GIF'),
    'bmp': encode(COLOURS, 'BMP'),
    'bmp of a palette': encode(COLOURS.quantize(9), 'BMP'),
    'bmp of one bit': encode(COLOURS.convert('1'), 'BMP'),
    'webp': encode(COLOURS, 'WEBP'),
    'tiff': encode(COLOURS, 'TIFF'),
    'tiff of a palette': encode(COLOURS.quantize(9), 'TIFF'),
    'cmyk tiff': encode(COLOURS.convert('CMYK'), 'TIFF', compression='tiff_lzw'),
}


@pytest.mark.parametrize('name', PLAIN)
def test_pixels_are_those_of_pil(name):
    pixels = decoding.decode(PLAIN[name])
    assert (pixels.dtype, pixels.shape) == (np.uint8, (5, 7, 3))
    np.testing.assert_array_equal(pixels, decode_with_pil(PLAIN[name]))
    decoding.check(io.BytesIO(PLAIN[name]))


def test_a_palette_has_its_colours():
    """A BMP by hand: 2 x 2 pixels, the lowest row first, as numbers of a palette of (blue, green, red)."""
    palette = bytes([10, 20, 30, 0, 40, 50, 60, 0, 70, 80, 90, 0])
    rows = bytes([2, 0, 0, 0]) + bytes([1, 2, 0, 0])  # each filled up to four bytes
    header = struct.pack('<IiiHHIIiiII', 40, 2, 2, 1, 8, 0, len(rows), 0, 0, 3, 3)
    start = 14 + len(header) + len(palette)
    content = struct.pack('<2sIHHI', b'BM', start + len(rows), 0, 0, start) + header + palette + rows
    expected = [[[60, 50, 40], [90, 80, 70]], [[90, 80, 70], [30, 20, 10]]]
    np.testing.assert_array_equal(decoding.decode(content), expected)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize(
    ('image_format', 'options'), [('JPEG', {}), ('PNG', {}), ('TIFF', {}), ('WEBP', {'lossless': True})]
)
def test_an_image_is_turned_upright(image_format, options, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    content = encode(COLOURS, image_format, exif=exif, **options)
    pixels = decoding.decode(content)
    np.testing.assert_array_equal(pixels, decode_with_pil(content))
    # By hand: if the camera lay on its side, the left column of the file is the upper row of the photo.
    if orientation == 6 and image_format != 'JPEG':
        np.testing.assert_array_equal(pixels, np.asarray(COLOURS)[::-1].transpose(1, 0, 2))


@pytest.mark.parametrize('exif', [b'Exif\0\0', b'Exif\0\0nothing of it', b'Exif\0\0MM\0*\xff\xff\xff\xff'])
@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
def test_damaged_exif_says_nothing(exif):
    plain = encode(COLOURS, 'PNG')
    np.testing.assert_array_equal(decoding.decode(encode(COLOURS, 'PNG', exif=exif)), decoding.decode(plain))


# --- What is transparent stands on white -----------------------------------------------------------

# Red, green, blue and alpha -> on white, alpha * colour + (1 - alpha) * 255.
HIDDEN = [
    ((200, 10, 90, 255), (200, 10, 90)),
    ((1, 2, 3, 0), (255, 255, 255)),
    ((200, 0, 51, 51), (244, 204, 214)),
]


@pytest.mark.parametrize(
    ('image_format', 'options'), [('PNG', {}), ('TIFF', {}), ('WEBP', {'lossless': True, 'exact': True})]
)
def test_transparent_colours_stand_on_white(image_format, options):
    stored = np.array([[colour for colour, _ in HIDDEN]], np.uint8)
    content = encode(PIL.Image.fromarray(stored), image_format, **options)
    assert decode_with_pil(content)[0, 1].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(decoding.decode(content), [[visible for _, visible in HIDDEN]])


def test_transparency_of_every_kind_stands_on_white():
    palette = (b'PLTE', bytes([9, 8, 7, 200, 0, 51]))
    cases = {
        'grey and alpha': (encode_png(4, 8, [bytes([7, 0, 200, 51])]), [[255] * 3, [244] * 3]),
        'palette with alphas': (
            encode_png(3, 8, [bytes([0, 1])], palette, (b'tRNS', bytes([0, 51]))),
            [[255] * 3, [244, 204, 214]],
        ),
        'palette with one alpha': (
            encode_png(3, 8, [bytes([0, 1])], palette, (b'tRNS', bytes([0]))),
            [[255] * 3, [200, 0, 51]],
        ),
        'grey with one that is transparent': (
            encode_png(0, 8, [bytes([7, 8])], (b'tRNS', pack_words(7))),
            [[255] * 3, [8] * 3],
        ),
        'colours with one that is transparent': (
            encode_png(2, 8, [bytes([1, 2, 3, 1, 2, 4])], (b'tRNS', pack_words(1, 2, 3))),
            [[255] * 3, [1, 2, 4]],
        ),
        'grey of 16 bits with one that is transparent': (
            encode_png(0, 16, [pack_words(0x0700, 0x0701)], (b'tRNS', pack_words(0x0700))),
            [[255] * 3, [7] * 3],
        ),
    }
    for name, (content, expected) in cases.items():
        np.testing.assert_array_equal(decoding.decode(content), [expected], name)
    gif = PIL.Image.new('P', (2, 1))
    gif.putpalette([9, 8, 7, 200, 0, 51])
    gif.putdata([0, 1])
    content = encode(gif, 'GIF', transparency=0)
    np.testing.assert_array_equal(decoding.decode(content), [[[255] * 3, [200, 0, 51]]])


# --- More than 8 bits, more than one frame ---------------------------------------------------------


def test_of_16_bits_the_upper_8_are_kept():
    grey = np.array([[0x0000, 0x00FF, 0x1234, 0xFFFF]], np.uint16)
    upper = np.repeat(np.array([[0, 0, 0x12, 0xFF]])[..., None], 3, axis=2)
    assert decode_with_pil(encode(PIL.Image.fromarray(grey), 'PNG')).max(axis=(0, 2)).tolist() == [
        0,
        255,
        255,
        255,
    ]
    for image_format in ('PNG', 'TIFF'):
        content = encode(PIL.Image.fromarray(grey), image_format)
        np.testing.assert_array_equal(decoding.decode(content), upper)
    content = encode(PIL.Image.fromarray(grey.astype('>u2')), 'TIFF')
    np.testing.assert_array_equal(decoding.decode(content), upper)
    colours = encode_png(2, 16, [pack_words(0x1234, 0x80FF, 0xFF00, 0x0080, 0xFFFF, 0x00FF)])
    np.testing.assert_array_equal(decoding.decode(colours), [[[0x12, 0x80, 0xFF], [0, 0xFF, 0]]])


def encode_tiff(width, bits, photometric, row):
    """The bytes of a grey TIFF of one row, by its specification."""
    entries = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (277, 1), (278, 1)]
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries = sorted([*entries, (273, start), (279, len(row))])
    fields = b''.join(struct.pack('<HHIHxx', tag, 3, 1, value) for tag, value in entries)
    return struct.pack('<2sHIH', b'II', 42, 8, len(entries)) + fields + struct.pack('<I', 0) + row


def test_of_a_tiff_0_may_be_white_and_12_bits_are_12():
    sixteen = struct.pack('<4H', 0, 0x12FF, 0x8000, 0xFFFF)
    upper = np.array([0, 0x12, 0x80, 0xFF])
    twelve = bytes.fromhex('0FF123800FFF')
    cases = {
        'of 16 bits': (encode_tiff(4, 16, 1, sixteen), upper),
        'of 16 bits, 0 is white': (encode_tiff(4, 16, 0, sixteen), 255 - upper),
        'of 8 bits, 0 is white': (encode_tiff(4, 8, 0, bytes([0, 1, 128, 255])), [255, 254, 127, 0]),
        'of 12 bits': (encode_tiff(4, 12, 1, twelve), [0x0F, 0x12, 0x80, 0xFF]),
    }
    for name, (content, grey) in cases.items():
        expected = np.repeat(np.array([grey])[..., None], 3, axis=2)
        np.testing.assert_array_equal(decoding.decode(content), expected, name)


@pytest.mark.parametrize('image_format', ['GIF', 'TIFF', 'PNG', 'WEBP'])
def test_the_first_of_several_frames(image_format):
    frames = [PIL.Image.new('RGB', (4, 3), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    options = {'lossless': True} if image_format == 'WEBP' else {}
    content = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert PIL.Image.open(io.BytesIO(content)).n_frames == 3
    np.testing.assert_array_equal(decoding.decode(content), np.full((3, 4, 3), (200, 0, 0)))


# --- What is refused -------------------------------------------------------------------------------

REFUSED = {
    'empty': (b'', '^it begins as no JPEG, PNG, GIF, BMP, WEBP, TIFF does$'),
    'text': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'it begins as no JPEG'),
    # PIL would run Ghostscript on it.
    'eps': (encode(COLOURS, 'EPS'), 'it begins as no JPEG'),
    'fractions': (
        encode(PIL.Image.fromarray(np.ones((2, 2), np.float32)), 'TIFF'),
        'its pixels are fractions',
    ),
    '32 bits': (
        encode(PIL.Image.fromarray(np.ones((2, 2), np.int32)), 'TIFF'),
        'its pixels are whole numbers of 32 bits, and nothing says which of them is white',
    ),
}
DAMAGED = {
    'cut short': (encode(COLOURS.resize((90, 90)), 'JPEG')[:900], 'truncated'),
    'png cut short': (encode(COLOURS.resize((90, 90)), 'PNG')[:300], 'truncated'),
    'a colour of 16 bits': (
        encode_png(2, 16, [pack_words(0x1234, 1, 2)], (b'tRNS', pack_words(0x1234, 1, 2))),
        'one of its colours of 16 bits is transparent',
    ),
}


@pytest.mark.parametrize('name', [*REFUSED, *DAMAGED])
def test_what_cannot_be_decoded_says_why(name):
    content, message = (REFUSED | DAMAGED)[name]
    with pytest.raises(ValueError, match=message) as error_info:
        decoding.decode(content)
    assert '\n' not in str(error_info.value)
    if name in REFUSED:
        with pytest.raises(ValueError, match=message):
            decoding.check(io.BytesIO(content))
