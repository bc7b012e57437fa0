"""How accurate a probe on a public ViT is at several image sizes.

    python -m benchmarks.image_size --teacher=FOLDER --features=FOLDER [--image_sizes=168,154] [--images=2250]
        [--examples_per_class=50] [--draws=4]

The images are the first training images of CIFAR-10, enlarged as the checkpoint's preprocessing says. For
each size, the frozen ViT computes its representations of all of them once; they are kept in --features, so
that an interrupted run resumes. Each draw takes images of every class that no other draw takes, the same for
all sizes. The probe that td_jax fits to them is evaluated on all other images.

A size is compared with the first one by two 95% t intervals of the paired difference of the accuracy: over
draws, and over images, each of which counts by its mean over the draws that leave it out.
"""

import pathlib
import re

import jax
import numpy as np
from absl import flags

from td_jax import command_line, statistics
from td_jax.configs import public_vit_cifar10
from td_jax.data import cifar, description
from td_jax.devices import fingerprint
from td_jax.errors import UserError
from td_jax.files import array_store
from td_jax.models import base
from td_jax.training import assembly, probe, public_teacher, teachers

# Images of a file of representations, and of a batch.
IMAGES_PER_FILE, BATCH = 250, 25
FEATURES_BYTES = 10**9


def compute_features(location: str, side: int, pixels: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    """The representations of a checkpoint of images, [images, width].

    Args:
      location: of the checkpoint.
      side: of the images that it is shown, in pixels.
      pixels: [images, 32, 32, 3] uint8.
      folder: where they are kept.
    """
    config = public_vit_cifar10.get_config()
    changes = {'teacher.pretrained': location, 'dataset.image_size': side, 'method': 'ld'}
    changes |= {'teacher.dataset.image_size': side, 'dataset.unlabelled': ''}
    config.update_from_flattened_dict(changes)
    config = public_teacher.complete(config, folder, list(changes))
    source = teachers.source_of(config, assembly.load_source(config, config.dataset))
    model, source, params = teachers.load(config, folder, source)

    @jax.jit
    def represent(params, pixels):
        inputs = source.inputs(source.tables, {'image': pixels}, None)
        return probe.representations(base.activations(model, params, inputs).upper)

    parts = []
    for start in range(0, len(pixels), IMAGES_PER_FILE):
        part = pixels[start : start + IMAGES_PER_FILE]
        about = {
            'teacher': fingerprint.of(params),
            'task': config.teacher.dataset.to_dict(),
            'images': description.digest_arrays({'image': part}),
            'jax': jax.__version__,
        }

        def compute(part=part):
            batches = [part[i : i + BATCH] for i in range(0, len(part), BATCH)]
            return {'features': np.concatenate([represent(params, batch) for batch in batches])}

        arrays = array_store.get_or_make(folder, about, compute, limit=FEATURES_BYTES, what='the features')
        parts.append(arrays['features'])
    return np.concatenate(parts)


def draw_rows(labels: np.ndarray, per_class: int, draws: int) -> list[np.ndarray]:
    """Rows of each draw: the first images of every class, the next ones, and so on.

    Raises:
      UserError: a class has too few images.
    """
    rows_by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    fewest = min(map(len, rows_by_class))
    if fewest < per_class * draws:
        raise UserError(
            f'{draws} draws of {per_class} images per class need {per_class * draws}; a class has {fewest}. '
            'Raise --images.'
        )
    return [
        np.concatenate([rows[i * per_class : (i + 1) * per_class] for rows in rows_by_class])
        for i in range(draws)
    ]


def score(features: np.ndarray, labels: np.ndarray, draws: list[np.ndarray]) -> np.ndarray:
    """Whether the probe of each draw predicts each image, [draws, images]; nan for its own images."""
    correct = np.full((len(draws), len(labels)), np.nan)
    for hits, rows in zip(correct, draws, strict=True):
        params = probe.fit(features[rows], labels[rows], int(labels.max()) + 1).params
        others = np.setdiff1d(np.arange(len(labels)), rows)
        logits = features[others] @ params['kernel'] + params['bias']
        hits[others] = np.argmax(logits, axis=-1) == labels[others]
    return correct


def compare(ours: np.ndarray, baseline: np.ndarray) -> dict[str, statistics.Estimate]:
    """The differences of two results of `score`, over draws and over images."""
    return {
        'draws': statistics.paired_difference(np.nanmean(ours, axis=1), np.nanmean(baseline, axis=1)),
        'images': statistics.paired_difference(np.nanmean(ours, axis=0), np.nanmean(baseline, axis=0)),
    }


def main():
    teacher = flags.DEFINE_string('teacher', None, 'The checkpoint, a ViT.')
    folder = flags.DEFINE_string('features', None, 'Where representations are kept.')
    sides = flags.DEFINE_list('image_sizes', '168,154', 'Sides of the images in pixels.')
    count = flags.DEFINE_integer('images', 2250, 'Images.', lower_bound=1)
    per_class = flags.DEFINE_integer('examples_per_class', 50, 'Labels per class and draw.', lower_bound=1)
    draws = flags.DEFINE_integer('draws', 4, 'Draws of labels.', lower_bound=2)

    def command():
        for side in sides.value:
            if not re.fullmatch('[1-9][0-9]{0,4}', side):
                raise UserError(f'--image_sizes has {side!r}; each is a number of pixels, as in 168,154.')
        pixels, labels, _ = cifar.read('cifar10')
        pixels, labels = pixels['train'][: count.value], labels['train'][: count.value]
        rows = draw_rows(labels, per_class.value, draws.value)
        results = []
        for side in map(int, sides.value):
            features = compute_features(teacher.value, side, pixels, pathlib.Path(folder.value))
            results.append(score(features, labels, rows))
        print(f'{len(labels)} images, {draws.value} draws of {per_class.value} labels per class\n')
        print('| pixels | accuracy | difference | over draws | over images |')
        print('| --- | --- | --- | --- | --- |')
        for side, result in zip(sides.value, results, strict=True):
            difference = compare(result, results[0])
            cells = [f'{np.nanmean(result):.4f}', '', '', '']
            if result is not results[0]:
                cells[1:] = [f'{difference["draws"].mean:+.4f}']
                cells[2:] = [f'± {difference[name].half_width:.4f}' for name in ('draws', 'images')]
            print(f'| {side} | {" | ".join(cells)} |')

    command_line.run(command, required=('teacher', 'features'))


if __name__ == '__main__':
    main()
