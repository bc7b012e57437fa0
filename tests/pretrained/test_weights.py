"""Arrays in several files, as the libraries of Hugging Face write them, and every kind of invalid index."""

import http.server
import json
import pathlib
import shutil
import threading

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from td_jax import pretrained
from td_jax.errors import UserError
from td_jax.pretrained import weights

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
CLASSIFIER = GOLDEN / 'hf_vit_tiny_classifier'
KERNEL = 'vit.encoder.layer.3.output.dense.weight'
SHARD = r'model-0000\d-of-00004\.safetensors'
# Of `write_in_parts`.
SHARDS = 4


@pytest.fixture
def parts(write_in_parts, tmp_path):
    """The folder of a classifier in several files."""
    return write_in_parts(CLASSIFIER, tmp_path / 'parts')


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)
    assert actual._replace(params=None, location='') == expected._replace(params=None, location='')


def test_parts_are_the_whole(parts, checkpoints):
    assert sorted(path.name for path in parts.glob('*.safetensors')) == [
        f'model-0000{i + 1}-of-0000{SHARDS}.safetensors' for i in range(SHARDS)
    ]
    assert_same(pretrained.read(str(parts)), checkpoints[CLASSIFIER])


def test_one_file_comes_before_parts(parts, checkpoints):
    """As in transformers."""
    shutil.copy(CLASSIFIER / weights.FILE, parts)
    (parts / weights.INDEX).write_text('{}')
    assert_same(pretrained.read(str(parts)), checkpoints[CLASSIFIER])


def _edit(change):
    """A function (folder) that changes the weight_map of its index."""

    def edit(folder):
        index = json.loads((folder / weights.INDEX).read_text())
        change(index['weight_map'])
        (folder / weights.INDEX).write_text(json.dumps(index))

    return edit


def _part(folder, name=KERNEL):
    """The file of an array."""
    return folder / json.loads((folder / weights.INDEX).read_text())['weight_map'][name]


def _edit_part(change):
    """A function (folder) that changes the arrays in the file of KERNEL."""

    def edit(folder):
        arrays = load_file(_part(folder))
        change(arrays)
        save_file(arrays, _part(folder))

    return edit


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda folder: _part(folder).unlink(),
            f'parts holds no {SHARD}, which model',
        ),
        (
            _edit_part(lambda arrays: arrays.pop(KERNEL)),
            rf'{SHARD} holds no {KERNEL}, which model\.safetensors\.index\.json says',
        ),
        (
            _edit_part(lambda arrays: arrays.update(extra=np.ones(2, 'f'))),
            r'safetensors holds extra, which model\.safetensors\.index\.json does not say',
        ),
        (_edit(lambda files: files.pop(KERNEL)), f'safetensors holds {KERNEL}, which .* does not say'),
        (
            _edit(lambda files: files.update({KERNEL: f'../whole/{weights.FILE}'})),
            rf"file of {KERNEL} is '\.\./whole/model\.safetensors'; it is the name of a \.safetensors in",
        ),
        (_edit(lambda files: files.update({KERNEL: '/etc/passwd'})), "is '/etc/passwd'; it is the name"),
        (_edit(lambda files: files.update({KERNEL: '*.safetensors'})), 'it is the name of'),
        (
            _edit(lambda files: files.update({KERNEL: 'pytorch_model.bin'})),
            'it is the name of',
        ),
        (_edit(lambda files: files.update({KERNEL: 3})), f'the file of {KERNEL} is 3; it is the name'),
        (_edit(lambda files: files.clear()), r'index\.json has no weight_map, the file of each array'),
        (lambda folder: (folder / weights.INDEX).write_text('{"weight_map": ['), 'cannot be read'),
        (lambda folder: (folder / weights.INDEX).write_text('{}'), 'has no weight_map'),
        (
            lambda folder: _part(folder).write_bytes(_part(folder).read_bytes()[:-1]),
            rf'{SHARD} is damaged or no \.safetensors',
        ),
    ],
)
def test_parts_that_are_no_whole_are_refused_by_name(parts, change, words):
    change(parts)
    with pytest.raises(UserError, match=words) as error_info:
        pretrained.read(str(parts))
    assert '\n' not in str(error_info.value)


def test_names_are_compared_before_an_array_is_read(parts, monkeypatch):
    _part(parts, 'classifier.weight').unlink()
    monkeypatch.setattr(weights, '_read_file', lambda path: pytest.fail(f'{path} is read'))
    with pytest.raises(UserError, match='holds no model-'):
        pretrained.read(str(parts))


def test_an_index_without_its_folder_is_refused(parts):
    with pytest.raises(UserError, match=r'give its folder, which holds config\.json'):
        pretrained.read(str(parts / weights.INDEX))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, with which the real client talks; its folder and the paths that it sends."""
    commit, folder, sent = 40 * 'c', tmp_path / 'published', []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def do_GET(self):
            path = self.path.split('?')[0]
            if path.startswith('/owner/name/resolve/'):
                _, name = path.removeprefix('/owner/name/resolve/').split('/')
                self.reply((folder / name).read_bytes(), ETag=f'"{name}"')
                sent.append(name) if self.command == 'GET' else None
                return
            files = [
                {'type': 'file', 'path': path.name, 'size': path.stat().st_size, 'oid': path.name}
                for path in folder.iterdir()
            ]
            is_list = path.startswith(f'/api/models/owner/name/tree/{commit}')
            content = (
                files
                if is_list
                else {
                    'id': 'owner/name',
                    'sha': commit,
                    'siblings': [{'rfilename': file['path']} for file in files],
                }
            )
            self.reply(json.dumps(content).encode(), **{'Content-Type': 'application/json'})

        do_HEAD = do_GET

        def reply(self, content, **headers):
            self.send_response(200)
            for key, value in {**headers, 'X-Repo-Commit': commit}.items():
                self.send_header(key, value)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            if self.command == 'GET':
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    download = huggingface_hub.snapshot_download
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as web:
        web.daemon_threads = True
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        place = {'endpoint': f'http://127.0.0.1:{web.server_port}', 'cache_dir': str(tmp_path / 'cache')}
        monkeypatch.setattr(
            huggingface_hub, 'snapshot_download', lambda name, **options: download(name, **place, **options)
        )
        yield folder, sent
        web.shutdown()
        thread.join()


def test_a_hub_sends_the_parts_that_its_index_names(hub, write_in_parts, checkpoints):
    folder, sent = hub
    write_in_parts(CLASSIFIER, folder)
    for name in ('model-00001-of-00002.safetensors', 'pytorch_model.bin', 'README.md'):
        (folder / name).write_text('of something else')
    for _ in range(2):
        assert_same(pretrained.read('hf://owner/name'), checkpoints[CLASSIFIER])
    shards = [f'model-0000{i + 1}-of-0000{SHARDS}.safetensors' for i in range(SHARDS)]
    assert sorted(sent) == sorted(['config.json', weights.INDEX, *shards])


def test_a_hub_without_one_of_the_parts_is_one_line(hub, write_in_parts):
    folder, _ = hub
    _part(write_in_parts(CLASSIFIER, folder)).unlink()
    with pytest.raises(UserError, match=f'holds no {SHARD}') as error_info:
        pretrained.read('hf://owner/name')
    assert '\n' not in str(error_info.value)


def test_a_hub_with_one_file_sends_no_parts(hub, write_in_parts, checkpoints):
    folder, sent = hub
    write_in_parts(CLASSIFIER, folder)
    shutil.copy(CLASSIFIER / weights.FILE, folder)
    assert_same(pretrained.read('hf://owner/name'), checkpoints[CLASSIFIER])
    assert not [name for name in sent if name.startswith('model-')]
