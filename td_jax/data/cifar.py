"""CIFAR-10 and CIFAR-100 as TFDS stores them: 60,000 real images of 32x32 pixels, kept on the device.

The images stay uint8 at 32 pixels; random crops and resizing are part of a step.
"""

import functools

import numpy as np

from td_jax.data import base, images, prepared
from td_jax.data.base import Source
from td_jax.errors import UserError

# The last images of training, by this share, are the validation slice.
VALIDATION_SHARE = 0.1


def load(name: str, config, task, teacher_views: images.TeacherViews | None = None) -> Source:
    """Cuts the images for a task.

    Inputs: {'image': [batch, size, size, 3]}, by images.inputs_of; labels: position of the class in the
    task's classes.

    Args:
      name: 'cifar10' or 'cifar100'.
      config: `config.dataset`, for the split and the random variation.
      task: `config.dataset` or `config.teacher.dataset`, for the classes and how a model is shown images.
      teacher_views: not used: images stay as they are, and each model's inputs resize them.

    Raises:
      UserError: classes that are not there, more examples of a class than there are, or data that is not
        prepared.
    """
    pixels, labels, names = read(name)
    count = len(labels['train'])
    num_train = count - round(count * VALIDATION_SHARE)
    cuts = {
        'validation': (('train', slice(0, num_train)), ('train', slice(num_train, None))),
        'test': (('train', slice(None)), ('test', slice(None))),
    }
    parts = [{'image': pixels[part][rows], 'labels': labels[part][rows]} for part, rows in cuts[config.split]]
    # The test split trains on the validation slice, too.
    held_back = count - num_train if config.split == 'test' else 0
    contents = (image.tobytes() for image in parts[1]['image'])
    return images.source_in_memory(name, names, parts, config, task, contents=contents, held_back=held_back)


@functools.cache
def read(name: str):
    """Reads both parts through TFDS.

    Returns:
      ({part: [images, 32, 32, 3] uint8}, {part: [images] class numbers}, class names), parts train and test.

    Raises:
      UserError: they are not prepared and cannot be downloaded, or hold what they must not.
    """
    builder = prepared.builder(name)
    pixels, labels = {}, {}
    names = tuple(builder.info.features['label'].names)
    for part in ('train', 'test'):
        with prepared.errors_as_user_error(name):
            batches = list(builder.as_dataset(split=part, batch_size=1000).as_numpy_iterator())
        if not batches:
            raise UserError(f'dataset {name} has no images in its part {part}. Prepare it anew.')
        pixels[part] = np.concatenate([batch['image'] for batch in batches])
        labels[part] = np.concatenate([batch['label'] for batch in batches])
        # Checked here, because an image with a wrong label would silently be in no class.
        base.check_labels(f'dataset {name}, {part}', labels[part], len(names))
    return pixels, labels, names
