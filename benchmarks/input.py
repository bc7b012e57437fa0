"""How fast examples come, compared with a bare decode of the same files.

    python -m benchmarks.input [--batch_size=64] [--batches=15] [--repeats=5] [--consume=N]

ImageNet (a sample will do: its files are read over and over) at 224 and 384 pixels, training with crops
and mirrors and evaluation, compared with decoding the same JPEG files whole and discarding them: a share of
100% means that all else is free. CIFAR-10 at 32 and 384 pixels as a step makes it: rows drawn on the
device, cropped, resized and mirrored. With --consume, the images per second that a training step takes, each
speed is compared with that. Cases take turns, and of each one the fastest repeat counts: what disturbs a
measurement only makes it slower. Processor time, of all cores together, hardly depends on what else runs.
"""

import functools
import itertools
import os
import time

import jax
import jax.numpy as jnp
from absl import flags

from td_jax import command_line, data
from td_jax.configs import common
from td_jax.data import base as batches
from td_jax.data import imagenet, images, prepared, stream, tfds_images

# What is ready before it is asked for, and more, so that it does not count.
UNTIMED_BATCHES = 6
# The evaluation's files, one pass after the other without opening a stream anew.
PASSES = 1000


def bare_decode(split: str, batch_size: int):
    """Batches of images that are decoded whole and not kept."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = prepared.builder(imagenet.NAME)
    skip = {'image': tfds.decode.SkipDecoding()}

    def shape(record):
        image = builder.info.features.deserialize_example(record, decoders=skip)['image']
        return tf.shape(tf.io.decode_jpeg(image, channels=3))

    records = tf.data.TFRecordDataset([span.path for span in tfds_images.spans_of(builder, split)])
    return stream.map_in_parallel(records.repeat(), shape, batch_size).as_numpy_iterator()


def training(size: int, batch_size: int):
    """Batches of ImageNet as training sees them."""
    config = common.get_config().dataset
    config.name, config.image_size = 'imagenet', size
    source = data.SOURCES['imagenet'](config, config)
    return source.train.open(0, 0, batch_size, slice(0, batch_size))


def evaluation(size: int, batch_size: int):
    """Batches of ImageNet as an evaluation sees them."""
    config = common.get_config().dataset
    config.name, config.image_size = 'imagenet', size
    builder = prepared.builder(imagenet.NAME)
    spans = tfds_images.spans_of(builder, 'validation') * PASSES
    views = {images.IMAGE: images.view_of(config, config)}
    return stream.evaluation_stream(tfds_images.records_of(builder), spans, views).open(batch_size, 0, 1)


def on_device(size: int, batch_size: int):
    """Batches of CIFAR-10, made on the device."""
    config = common.get_config().dataset
    config.name, config.image_size = 'cifar10', size
    source = data.SOURCES['cifar10'](config, config)
    train = jax.tree.map(jnp.asarray, source.train)

    @jax.jit
    def batch(train, step):
        key = jax.random.key(step)
        rows = jax.random.randint(key, (batch_size,), 0, len(train['labels']))
        return source.inputs(source.tables, batches.take(train, rows), key)

    return (jax.block_until_ready(batch(train, step)) for step in itertools.count())


# name -> (batches of a size, the bare decode to compare with)
CASES = {
    'ImageNet train, bare decode': (functools.partial(bare_decode, 'train'), None),
    'ImageNet train, 224': (functools.partial(training, 224), 'ImageNet train, bare decode'),
    'ImageNet train, 384': (functools.partial(training, 384), 'ImageNet train, bare decode'),
    'ImageNet evaluation, bare decode': (functools.partial(bare_decode, 'validation'), None),
    'ImageNet evaluation, 224': (functools.partial(evaluation, 224), 'ImageNet evaluation, bare decode'),
    'ImageNet evaluation, 384': (functools.partial(evaluation, 384), 'ImageNet evaluation, bare decode'),
    'CIFAR-10 on the device, 32': (functools.partial(on_device, 32), None),
    'CIFAR-10 on the device, 384': (functools.partial(on_device, 384), None),
}


def measure(batch_size: int, num_batches: int, repeats: int) -> dict:
    """Times every case.

    Returns:
      {name of the case: (images per second, processor seconds per image)}, the best of each.
    """
    # Kept open for all repeats: an idle one fills its buffers and stops.
    streams = {name: make(batch_size) for name, (make, _) in CASES.items()}
    seconds = {name: ([], []) for name in CASES}
    for _ in range(repeats):
        for name, case_batches in streams.items():
            for _ in range(UNTIMED_BATCHES):
                next(case_batches)
            began, processor_began = time.perf_counter(), time.process_time()
            for _ in range(num_batches):
                next(case_batches)
            seconds[name][0].append(time.perf_counter() - began)
            seconds[name][1].append(time.process_time() - processor_began)
    count = batch_size * num_batches
    return {name: (count / min(wall), min(processor) / count) for name, (wall, processor) in seconds.items()}


def main():
    batch_size = flags.DEFINE_integer('batch_size', 64, 'Images per batch.', lower_bound=1)
    num_batches = flags.DEFINE_integer('batches', 15, 'Batches that are timed at once.', lower_bound=1)
    repeats = flags.DEFINE_integer('repeats', 5, 'Times each case is timed; the best counts.', lower_bound=1)
    consume = flags.DEFINE_float('consume', 0, 'Images per second that a training step takes.', lower_bound=0)

    def command():
        results = measure(batch_size.value, num_batches.value, repeats.value)
        kind = f'{jax.device_count()} {jax.devices()[0].device_kind} device(s)'
        print(f'{os.cpu_count()} cores, {kind}, batches of {batch_size.value}\n')
        columns = [
            'pipeline',
            'images/s',
            'of the bare decode',
            'processor ms an image',
            'of the bare decode',
        ]
        columns += ['of what a step takes'] * bool(consume.value)
        print('|', ' | '.join(columns), '|')
        print('|', ' | '.join('---' for _ in columns), '|')
        for name, (_, reference) in CASES.items():
            speed, processor = results[name]
            row = [name, f'{speed:.0f}', '', f'{1e3 * processor:.2f}', '']
            if reference:
                bare_speed, bare_processor = results[reference]
                row[2], row[4] = f'{speed / bare_speed:.0%}', f'{bare_processor / processor:.0%}'
            if consume.value:
                row.append(f'{speed / consume.value:.1f} times')
            print('|', ' | '.join(row), '|')

    command_line.run(command, required=())


if __name__ == '__main__':
    main()
