"""The report on a checkpoint."""

import ast
import json
import pathlib
import shlex
import shutil

import jax
import numpy as np
import pytest

from td_jax import pretrained
from td_jax.configs import common
from td_jax.models import vit
from td_jax.pretrained import google, summary
from td_jax.pretrained.architecture import (
    Architecture,
    Checkpoint,
    build_module,
    changed_values,
    check_teacher,
    complete_config,
)

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def test_what_a_checkpoint_is():
    """Counts worked by hand: 48 wide, MLP 96, 16 patches of 192 values, 10 outputs."""
    lines = summary.report(str(GOLDEN / 'vit_tiny.npz')).splitlines()
    around = (192 * 48 + 48) + 48 + 17 * 48
    block = 4 * (48 * 48 + 48) + (48 * 96 + 96) + (96 * 48 + 48) + 4 * 48
    backbone, head = around + 6 * block + 96, 48 * 10 + 10
    values_by_name = dict(line.split(maxsplit=1) for line in lines[2:11])
    assert values_by_name == {
        'variant': 'none of the published ones',
        'sizes': '6 blocks, width 48, MLP 96, 4 heads',
        'images': '32 x 32 pixels, 4 x 4 patches of 8 x 8, and a class token',
        'activation': 'gelu_tanh, LayerNorm epsilon 1e-06',
        'pre-logits': 'none',
        'head': '10 outputs',
        'pixels': '(pixel / 255 - (0.5,0.5,0.5)) / (0.5,0.5,0.5), resized to 32 x 32 pixels (bilinear)',
        'labels': 'without names',
        'parameters': f'backbone {backbone:,}, head {head:,}, total {backbone + head:,}',
    }
    rows = [line.split(maxsplit=3) for line in lines if line.strip()[:1].isdigit()]
    assert rows == [
        [
            str(split),
            f'{around + split * block:,}',
            f'{(6 - split) * block + 96:,}',
            '[batch, 17, 48]  [batch, 17, 48]  [batch, 17, 128]',
        ]
        for split in range(7)
    ]


@pytest.mark.parametrize(
    'name',
    [
        'vit_tiny_prelogits.npz',
        *(
            'hf_vit_tiny',
            'hf_vit_tiny_classifier',
            'hf_deit_tiny',
            'hf_dinov2_tiny',
            'hf_dinov2_registers_tiny',
        ),
    ],
)
def test_the_short_flags_and_the_long_ones_make_the_same_teacher(name):
    """The long flags of the report set what the checkpoint completes from the short ones."""
    location = str(GOLDEN / name)
    lines = [line for line in summary.report(location).splitlines() if '--config.' in line]
    short, long = ' '.join(lines[::2]), ' '.join(lines[1::2])
    checkpoint, configs = pretrained.read(location), []
    for flags in (short, f'{short} {long}'):
        config, keys = common.get_config(), []
        for override in shlex.split(flags):
            key, value = override.removeprefix('--config.').split('=')
            old = config
            for part in key.split('.'):
                old = old[part]
            value = value if isinstance(old, str) else ast.literal_eval(value)
            config.update_from_flattened_dict({key: value})
            keys.append(key)
        assert config.teacher.pretrained == location
        configs.append(complete_config(checkpoint, config, keys.__contains__, common.get_config()))
        check_teacher(checkpoint, configs[-1])
    assert len(long.split()) > 3 and configs[0].model.initial == 'teacher'
    assert changed_values(*configs) == {}
    assert changed_values(config, configs[-1]) == {}


def test_registers_and_the_input_of_the_head_are_reported():
    text = summary.report(str(GOLDEN / 'hf_dinov2_registers_tiny'))
    assert 'a class token and 3 registers\n' in text
    assert 'head reads  class_and_mean\n' in text
    assert '[batch, 20, 24]  [batch, 20, 24]  [batch, 20, 128]' in text


def test_a_published_size_goes_by_its_name(monkeypatch):
    architecture = Architecture(vit.VARIANTS['B'], 32, 224, 21843, 'gelu_tanh', 1e-6, True)
    checkpoint = Checkpoint('gs://b/ViT-B_32.npz', architecture, {}, google.PREPROCESSING, unused=('odd',))
    monkeypatch.setattr(pretrained, 'read', lambda location: checkpoint)
    text = summary.report('gs://b/ViT-B_32.npz')
    assert 'variant     B/32\n' in text
    assert 'head        21,843 outputs\n' in text
    # 88,224,232 parameters without its head of 1,000 outputs.
    assert 'parameters  backbone 87,455,232, head 17,387,859, total 104,843,091\n' in text
    assert 'unused      odd\n' in text
    assert '[batch, 50, 768]  [batch, 50, 768]  [batch, 50, 128]' in text
    teacher = text[text.index('As a teacher') :].splitlines()[2:7:4]
    assert teacher[0] == '--config.teacher.pretrained=gs://b/ViT-B_32.npz'
    assert teacher[1].endswith(
        '--config.teacher.model.name=vit --config.teacher.model.pre_logits=True '
        '--config.teacher.model.split=6'
    )
    assert '\n--config.model.initial=teacher --config.model.layers=6\n' in text


def test_a_block_keeps_its_shape():
    """The table computes shapes at one split and shows them for all splits."""
    architecture = pretrained.read(str(GOLDEN / 'vit_tiny.npz')).architecture
    image = np.zeros((3, 32, 32, 3), np.float32)
    for split in range(7):
        module = build_module(architecture, split)
        s, _ = jax.eval_shape(
            lambda key, module=module: module.init_with_output(key, {'image': image}, method='lower'),
            jax.random.key(0),
        )
        assert s.shape == (3, 17, 48)


def test_preprocessing_and_names_of_labels_are_reported(tmp_path):
    folder = tmp_path / 'folder'
    shutil.copytree(GOLDEN / 'hf_vit_tiny_classifier', folder)
    text = summary.report(str(folder))
    assert 'labels      without names\n' in text
    assert 'assumed     no preprocessor_config.json' in text
    config = json.loads((folder / 'config.json').read_text())
    config['id2label'] = {str(i): name for i, name in enumerate('abcdefg')}
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'preprocessor_config.json').write_text(json.dumps({'image_mean': [0.1, 0.2, 0.3], 'size': 32}))
    text = summary.report(str(folder))
    assert 'labels      a, b, c, ...\n' in text
    assert (
        'pixels      (pixel / 255 - (0.1,0.2,0.3)) / (0.5,0.5,0.5), '
        'resized to 32 x 32 pixels (bilinear_antialias)\n' in text
    )
    assert 'assumed' not in text
    assert "'--config.teacher.dataset.image_mean=(0.1,0.2,0.3)'" in text
    assert "'--config.dataset.image_mean=(0.1,0.2,0.3)'" in text
