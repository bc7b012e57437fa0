"""Files of ids and of images: what is read, and the one-line errors."""

import jax
import numpy as np
import PIL.Image
import pytest
from etils import epath

from td_jax import pretrained
from td_jax.data import base as data
from td_jax.data import resizing
from td_jax.data.resizing import View
from td_jax.errors import UserError
from td_jax.predicting import reading

WANTED = ['user_id', 'movie_id']


@pytest.fixture
def read_table(tmp_path):
    """A function (content, name) -> the table that is read from a file with this content."""

    def write_and_read(content, name='a.csv'):
        path = epath.Path(tmp_path / name)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return reading.read_table(path, WANTED)

    return write_and_read


def test_columns_come_by_name_with_their_lines(read_table):
    # A byte order mark, as spreadsheets write it, another column, a line break in a cell and an empty line.
    text = '\ufeffmovie_id,note,user_id\r\n242,"two\r\nlines",196\r\n\r\n" x,y ",,ann\r\n'
    result = read_table(text)
    assert result.columns == {'user_id': ['196', 'ann'], 'movie_id': ['242', 'x,y']}
    assert result.lines == [3, 5]
    assert result.others == ['note']
    assert result.notes == ['a.csv has 1 row over several lines, by double quotes (first: lines 2 to 3)']
    assert read_table('user_id\tmovie_id\n1\t2,3\n', 'a.TSV').columns == {
        'user_id': ['1'],
        'movie_id': ['2,3'],
    }
    quoted_result = read_table('user_id\tnote\tmovie_id\n1\t"5 inches\t2\n3\t"a"\t4\n', 'b.tsv')
    assert quoted_result.columns == {'user_id': ['1', '3'], 'movie_id': ['2', '4']}
    assert (quoted_result.lines, quoted_result.notes) == ([2, 3], [])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'a.csv is empty; its first line names its columns.'),
        ('\n1,2\n', "the column of ids is 'user_id', but "),
        ('user_id,movie_id\n', 'a.csv has a first line and no rows.'),
        (
            'user_id,movie\n1,2\n',
            'a.csv, line 1, has no such column. Did you mean movie? It has user_id, movie.',
        ),
        (
            'user_id;movie_id\n1;2\n',
            'a.csv, line 1, has no such column. Did you mean user_id;movie_id? It has user_id;movie_id.',
        ),
        ('user_id,movie_id,user_id\n1,2,3\n', "a.csv, line 1: the column 'user_id' is there twice"),
        ('user_id,movie_id\n1,2\n3\n', 'a.csv, line 3: a row of 1 cells, but there are 2 columns.'),
        ('user_id,movie_id\n1,2,3\n', 'a.csv, line 2: a row of 3 cells, but there are 2 columns.'),
        ('user_id,movie_id\n1,2\n ,3\n', 'a.csv, line 3: user_id is empty.'),
        (b'user_id,movie_id\n1,2\n\xe9,3\n', 'a.csv, line 3: it is not UTF-8.'),
        ('user_id,movie_id\n1,"2\n3,4\n', 'a.csv, lines 2 to 3: unexpected end of data.'),
    ],
)
def test_what_is_wrong_with_a_table_is_reported_with_its_line(read_table, content, message):
    with pytest.raises(UserError) as error_info:
        read_table(content)
    assert message in str(error_info.value)
    assert '\n' not in str(error_info.value)


def test_what_is_no_table_is_refused(read_table, tmp_path):
    with pytest.raises(UserError, match=r'a\.txt is no table; the name of one ends in \.csv or \.tsv'):
        read_table('user_id,movie_id\n1,2\n', 'a.txt')
    (tmp_path / 'folder.csv').mkdir()
    for name in ('folder.csv', 'none.csv'):
        with pytest.raises(UserError, match=f'{name} cannot be read: '):
            reading.read_table(epath.Path(tmp_path / name), WANTED)


# --- Images ----------------------------------------------------------------------------------------


def test_images_of_a_folder_come_in_order_of_their_names(tmp_path):
    for name in ('b.png', 'a/z.JPG', 'a/note.txt', 'c.jpeg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    folder = epath.Path(tmp_path)
    listing = reading.find_images(folder)
    assert list(listing.files) == ['a/z.JPG', 'b.png', 'c.jpeg']
    assert listing.ignored == 'a/note.txt'
    # A single file is read whatever its name.
    for name in ('b.png', 'a/note.txt'):
        assert reading.find_images(folder / name) == ({name.rpartition('/')[2]: folder / name}, '')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'other' / '.hidden').mkdir(parents=True)
    with pytest.raises(UserError, match=r'empty has no images in it; known are \.jpg, '):
        reading.find_images(folder / 'empty')
    with pytest.raises(UserError, match=r'other has no images in it, but 1 hidden; known are \.jpg, '):
        reading.find_images(folder / 'other')
    with pytest.raises(UserError, match=r'none is not there\.$'):
        reading.find_images(folder / 'none')


def test_pixels_are_those_of_pil(tmp_path):
    """Colour and grey images; a resize that is not Pillow's own is rounded or not."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 31, 3), np.uint8), rng.integers(0, 256, (40, 13), np.uint8)]
    files = []
    for i, image in enumerate(images):
        PIL.Image.fromarray(image).save(tmp_path / f'{i}.png')
        files.append(epath.Path(tmp_path / f'{i}.png'))
    resized = reading.read_pixels(files, data.Picture(View(8, 'bilinear_antialias'), False, None))
    assert (resized.shape, resized.dtype) == ((2, 8, 8, 3), np.float32)
    for image, pixels in zip(images, resized, strict=True):
        # The width first.
        expected = PIL.Image.fromarray(image).convert('RGB')
        for size in ((8, expected.height), (8, 8)):
            expected = expected.resize(size, PIL.Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(pixels, np.asarray(expected, np.float32))
    picture = data.Picture(View(8, 'bilinear'), False, None)
    resized = reading.read_pixels(files, picture)
    assert np.any(resized % 1)
    rounded = reading.read_pixels(files, picture._replace(is_rounded=True))
    np.testing.assert_array_equal(rounded, np.floor(resized + np.float32(0.5)))


@pytest.mark.parametrize('name', ['dinov2_small_saliency', 'efficientnet_lite0'])
def test_real_photographs_become_what_is_published(foundation, tmp_path, name):
    """Photographs with the shapes of ImageNet's: resized to 256 pixels, of which the middle 224 are taken."""
    folder = foundation(name)
    view = pretrained.read(str(folder)).preprocessing.view()
    files = []
    with np.load(folder / 'expected.npz') as expected:
        for i in range(3):
            files.append(epath.Path(tmp_path / f'{i}.jpg'))
            files[-1].write_bytes(expected[f'jpeg_{i}'].tobytes())
        pixels = expected['pixels_224']
    np.testing.assert_array_equal(reading.read_pixels(files, data.Picture(view, True, None)), pixels)
    # An exported program resizes in the same way.
    for i, file in enumerate(files):
        image = np.asarray(PIL.Image.open(file))[None]
        on_device = np.asarray(jax.jit(resizing.resize_on_device, static_argnums=1)(image, view))[0]
        assert np.abs(on_device - pixels[i]).max() <= 1
        assert np.mean(on_device != pixels[i]) < 0.001


@pytest.mark.parametrize('content', [b'', b'no image', b'\xff\xd8\xff broken'])
def test_what_cannot_be_decoded_is_named(tmp_path, content):
    (tmp_path / 'a.jpg').write_bytes(content)
    with pytest.raises(UserError, match=r'a\.jpg cannot be decoded as an image: [^\n]+\.$'):
        reading.read_pixels([epath.Path(tmp_path / 'a.jpg')], data.Picture(View(8, 'bilinear'), False, None))
