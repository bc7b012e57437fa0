"""Files to try docs/own.md with: ratings with ids of text, and images in a folder for each class.

    python -m examples.own_files --output=runs/files

The ratings are drawn: a reader likes a book by what both are like, and by chance. The images are the real
digits of scikit-learn.
"""

import csv
import datetime
import io

import numpy as np
import PIL.Image
import sklearn.datasets
from absl import flags

from td_jax import command_line
from td_jax.errors import UserError
from td_jax.files import workdir

READERS, BOOKS, RATINGS = 100, 60, 5000
GENRES = 'Crime', 'Travel', 'Poetry'
# Of an image, in pixels; a digit has 8 x 8.
SIDE = 32


def ratings():
    """The text of a CSV; of a book a title and one or two genres."""
    rng = np.random.default_rng(0)
    readers, books = rng.normal(size=(READERS, 3)), rng.normal(size=(BOOKS, 3))
    genres = ['|'.join(sorted(set(rng.choice(GENRES, 2)))) for _ in range(BOOKS)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator='\n')
    table.writerow(['user', 'item', 'rating', 'timestamp', 'title', 'genres'])
    for minute in range(RATINGS):
        user, item = rng.integers(READERS), rng.integers(BOOKS)
        likes = 3 + readers[user] @ books[item] / 2 + rng.normal(scale=0.3)
        time = datetime.datetime(2026, 1, 1) + datetime.timedelta(minutes=minute)
        title = f'The {genres[item].split("|")[0]} of {item}'
        table.writerow(
            [
                f'reader-{user}',
                f'book-{item}',
                f'{np.clip(likes, 1, 5):.1f}',
                time.isoformat(),
                title,
                genres[item],
            ]
        )
    return text.getvalue()


def write(output):
    folder = workdir.resolve(output)
    if folder.exists():
        raise UserError(f'{folder} is there already; delete it or choose another --output.')
    folder.parent.mkdir(parents=True, exist_ok=True)
    with workdir.atomic_write(folder) as temporary:
        temporary.mkdir()
        (temporary / 'ratings.csv').write_text(ratings())
        pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            (temporary / 'images' / str(label)).mkdir(parents=True, exist_ok=True)
            picture = PIL.Image.fromarray(np.uint8(image.reshape(8, 8) * 255 / 16))
            picture.resize((SIDE, SIDE)).save(temporary / 'images' / str(label) / f'{number}.png')
    print(folder)


if __name__ == '__main__':
    folder = flags.DEFINE_string('output', None, 'Folder that is made.')
    command_line.run(lambda: write(folder.value), required=('output',))
