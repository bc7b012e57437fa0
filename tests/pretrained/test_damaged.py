"""Checkpoint files that are truncated or hold something else."""

import pathlib
import shutil

import numpy as np
import pytest

from td_jax import pretrained
from td_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NPZ, PRE_LOGITS = GOLDEN / 'vit_tiny.npz', GOLDEN / 'vit_tiny_prelogits.npz'
BARE, CLASSIFIER = GOLDEN / 'hf_vit_tiny', GOLDEN / 'hf_vit_tiny_classifier'


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    content = NPZ.read_bytes()
    (tmp_path / 'part.npz').write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r'part\.npz is damaged or no \.npz'):
        pretrained.read(str(tmp_path / 'part.npz'))
    shutil.copytree(BARE, tmp_path / 'folder')
    content = (BARE / 'model.safetensors').read_bytes()
    (tmp_path / 'folder/model.safetensors').write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r'model\.safetensors is damaged or no \.safetensors'):
        pretrained.read(str(tmp_path / 'folder'))


def test_a_flipped_bit_is_noticed(tmp_path):
    content = bytearray(NPZ.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / 'flipped.npz').write_bytes(content)
    with pytest.raises(UserError, match='is damaged'):
        pretrained.read(str(tmp_path / 'flipped.npz'))


def test_what_could_run_code_is_not_read(tmp_path):
    np.savez(tmp_path / 'objects.npz', cls=np.array([{}], dtype=object))
    with pytest.raises(UserError, match='Object arrays cannot be loaded'):
        pretrained.read(str(tmp_path / 'objects.npz'))


def test_no_advice_is_to_run_what_is_in_a_file(tmp_path):
    (tmp_path / 'photo.jpg').write_bytes(b'\xff\xd8\xff\xe0' + bytes(100))
    with pytest.raises(UserError, match=r'photo\.jpg is damaged or no \.npz \(it is no zip archive\)'):
        pretrained.read(str(tmp_path / 'photo.jpg'))


def test_a_lone_array_is_no_checkpoint(tmp_path):
    np.save(tmp_path / 'lone.npy', np.zeros(3))
    with pytest.raises(UserError, match=r'lone\.npy is damaged or no \.npz'):
        pretrained.read(str(tmp_path / 'lone.npy'))
