"""Writes prepared data sets, with values in them that real ones never hold."""

import pytest


@pytest.fixture
def write_prepared(monkeypatch, tmp_path):
    """A function (name, version, module, features, {split: [example]}) that writes a data set for TFDS.

    TFDS reads it with the features of its own builder, and is written with more classes for an invalid label.
    """
    import tensorflow_datasets as tfds

    def write(name, version, module, features, splits):
        place = tmp_path / name / version
        place.mkdir(parents=True)
        dataset, _, config_name = name.partition('/')
        identity = tfds.core.dataset_info.DatasetIdentity(
            name=dataset,
            version=tfds.core.Version(version),
            data_dir=str(place),
            module_name=f'tensorflow_datasets.{module}',
            config_name=config_name,
        )
        info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
        writer = tfds.core.SequentialWriter(info, 1000)
        writer.initialize_splits(list(splits))
        for split, examples in splits.items():
            writer.add_examples({split: examples})
        writer.close_all()
        # TFDS reads TFDS_DATA_DIR once, when it is imported.
        monkeypatch.setattr('tensorflow_datasets.core.constants.DATA_DIR', str(tmp_path))
        return place

    return write
