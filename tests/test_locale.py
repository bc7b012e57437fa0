"""Names with letters that ASCII lacks, where Python takes all text for ASCII: files are UTF-8."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from td_jax.training.run import train

ROOT = pathlib.Path(__file__).parents[1]
CLASSIFIER = ROOT / 'tests' / 'golden' / 'hf_vit_tiny_classifier'
# Without PYTHONUTF8, Python itself takes UTF-8 in this locale.
ASCII = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONIOENCODING': ''}
NAMES = 'bêr', 'кот'


def run(name, *arguments):
    """Runs a command in a fresh process: (exit code, stdout, stderr), which are ASCII."""
    completed = subprocess.run(
        [sys.executable, '-m', f'td_jax.{name}', *arguments],
        cwd=ROOT,
        env={**os.environ, **ASCII},
        capture_output=True,
        encoding='ascii',
        check=False,
    )
    return completed.returncode, completed.stdout, completed.stderr


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder of images whose classes and files have names with such letters."""
    folder = tmp_path_factory.mktemp('photos')
    for i in range(24):
        file = folder / NAMES[i % 2] / f'é{i}.png'
        file.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(file)
    return folder


def test_predictions_are_utf8(photos, small_config, tmp_path):
    changes = {'name': 'images', 'path': str(photos), 'image_size': 8, 'classes': ()}
    config = small_config(
        method='supervised',
        num_steps=1,
        num_seeds=1,
        **{f'dataset__{key}': value for key, value in changes.items()},
    )
    config.teacher.dataset.classes = ()
    train(config, tmp_path / 'run')
    folder = f'--workdir={tmp_path / "run"}'
    (tmp_path / 'in').mkdir()
    for i, file in enumerate(sorted((photos / NAMES[1]).iterdir())[:2]):
        shutil.copy(file, tmp_path / 'in' / f'é{i}.png')
    target = tmp_path / 'out.csv'
    code, out, err = run('predict', folder, f'--input={tmp_path / "in"}', f'--output={target}')
    assert (code, out, err) == (0, f'{target}\n2 images\n', '')
    with target.open(encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['file', 'class', 'probability', *(f'p({name})' for name in NAMES)]
    assert [row['file'] for row in rows] == ['é0.png', 'é1.png']
    assert {row['class'] for row in rows} <= set(NAMES)


def test_what_is_printed_has_codes_for_letters(tmp_path):
    shutil.copytree(CLASSIFIER, tmp_path / 'named')
    path = tmp_path / 'named/config.json'
    config = json.loads(path.read_text())
    config['id2label'] = dict(enumerate([*NAMES, *'cdefg']))
    path.write_text(json.dumps(config, ensure_ascii=False), encoding='utf-8')
    code, out, err = run('inspect', str(tmp_path / 'named'))
    assert (code, err) == (0, '')
    assert f'labels      {", ".join(NAMES)}, c, ...' in out.encode('ascii').decode('unicode_escape')
