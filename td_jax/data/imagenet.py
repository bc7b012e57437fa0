"""ImageNet as TFDS stores it (`imagenet2012`), read while training goes on."""

from td_jax.data import images, prepared, stream, tfds_images
from td_jax.data.base import Source

NAME = 'imagenet2012'
# split -> (trained on, evaluated on); the labels of ImageNet's own test images are not public.
SPLITS = {'validation': ('train[:99%]', 'train[99%:]'), 'test': ('train', 'validation')}


def load(config, task, teacher_views: images.TeacherViews | None = None) -> Source:
    """Opens the images, by stream.source_of.

    Args:
      config: `config.dataset`, for the split and the random variation.
      task: `config.dataset` or `config.teacher.dataset`, for how a model is shown images; takes all classes
        and all examples.
      teacher_views: how a teacher is shown the same images, if other than its student.

    Raises:
      UserError: a part of the classes or examples is requested, or the data is not prepared, or in another
        format than tfrecord.
    """
    stream.check_whole('imagenet', config, task)
    stream.tensorflow()
    builder = prepared.builder(NAME)
    prepared.check_format(builder)
    records = tfds_images.records_of(builder)
    parts = [tfds_images.spans_of(builder, split) for split in SPLITS[config.split]]
    label_names = tuple(builder.info.features['label'].names)
    return tfds_images.source_of_stream(
        NAME, label_names, builder, records, parts, config, task, teacher_views
    )
