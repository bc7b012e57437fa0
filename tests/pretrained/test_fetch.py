"""Locations of checkpoints; downloads come from a local server."""

import http.server
import pathlib
import shutil
import threading
import urllib.request

import huggingface_hub
import jax
import numpy as np
import pytest

from td_jax import pretrained
from td_jax.errors import UserError
from td_jax.models import vit
from td_jax.pretrained import fetch

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NPZ, PRE_LOGITS = GOLDEN / 'vit_tiny.npz', GOLDEN / 'vit_tiny_prelogits.npz'
BARE, CLASSIFIER = GOLDEN / 'hf_vit_tiny', GOLDEN / 'hf_vit_tiny_classifier'
SIZES = vit.Sizes(width=48, layers=6, mlp=96, heads=4)


def test_a_file_that_is_not_there_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError) as error_info:
        pretrained.read(str(tmp_path / 'ViT-B_32.npz'))
    text = str(error_info.value)
    assert f'{tmp_path}/ViT-B_32.npz is not there' in text
    assert 'https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_32.npz' in text
    with pytest.raises(UserError, match=r'nowhere is not there; give an \.npz'):
        pretrained.read(str(tmp_path / 'nowhere'))


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    shutil.copy(NPZ, tmp_path / 'mine.npz')
    assert pretrained.read('~/mine.npz').architecture.sizes == SIZES


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A web server that answers all requests, and an empty cache.

    Yields a namespace: `files` (path -> bytes, or a status), `requests` (paths so far), `cut` (bytes that are
    promised and never sent) and `cache`.
    """

    class State:
        files, requests, cut, cache = {}, [], 0, tmp_path / 'cache'

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            State.requests.append(self.path)
            content = State.files.get(self.path, 404)
            if isinstance(content, int):
                self.send_error(content)
                return
            self.send_response(200)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - State.cut])

        def log_message(self, *_):
            pass

    State.files, State.requests = {}, []
    monkeypatch.setenv('TD_JAX_CACHE', str(State.cache))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def urlopen(url, timeout):
            assert url.startswith('https://')
            return direct.open(
                f'http://127.0.0.1:{web.server_port}/{url.removeprefix("https://")}', timeout=timeout
            )

        monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
        yield State
        web.shutdown()
        thread.join()


def list_cached(cache):
    return [str(path.relative_to(cache)) for path in cache.rglob('*') if path.is_file()]


@pytest.mark.parametrize(
    ('location', 'path'),
    [
        ('https://example.org/a/ViT.npz', '/example.org/a/ViT.npz'),
        ('gs://bucket/a/ViT.npz', '/storage.googleapis.com/bucket/a/ViT.npz'),
    ],
)
def test_a_download_happens_once(server, checkpoints, location, path):
    server.files[path] = NPZ.read_bytes()
    for _ in range(2):
        checkpoint = pretrained.read(location)
        assert checkpoint.location == location
        jax.tree.map(np.testing.assert_array_equal, checkpoint.params, checkpoints[NPZ].params)
    assert server.requests == [path]
    assert list_cached(server.cache) == [path.removeprefix('/')]


def test_a_query_is_part_of_the_name(server):
    server.files['/example.org/ViT.npz?version=1'] = NPZ.read_bytes()
    server.files['/example.org/ViT.npz?version=2'] = PRE_LOGITS.read_bytes()
    outputs = [
        pretrained.read(f'https://example.org/ViT.npz?version={i}').architecture.num_outputs for i in (1, 2)
    ]
    assert outputs == [10, 37]


def test_a_download_that_breaks_leaves_nothing_behind(server):
    server.files['/example.org/ViT.npz'] = NPZ.read_bytes()
    server.cut = 1
    with pytest.raises(UserError, match=r'ended after \d+ of \d+ bytes'):
        pretrained.read('https://example.org/ViT.npz')
    assert list_cached(server.cache) == []
    server.cut = 0
    assert pretrained.read('https://example.org/ViT.npz').architecture.sizes == SIZES


def test_what_a_killed_download_left_is_not_read(server):
    folder = server.cache / 'example.org'
    folder.mkdir(parents=True)
    (folder / '.tmpabc.part').write_bytes(NPZ.read_bytes()[:100])
    server.files['/example.org/ViT.npz'] = NPZ.read_bytes()
    assert pretrained.read('https://example.org/ViT.npz').architecture.sizes == SIZES


def test_a_page_in_place_of_a_file_is_not_kept(server):
    server.files['/example.org/ViT.npz'] = b'<html>Please log in.</html>'
    with pytest.raises(UserError, match=r'what came is no \.npz'):
        pretrained.read('https://example.org/ViT.npz')
    assert list_cached(server.cache) == []


def test_a_file_that_is_not_published_is_one_line(server):
    with pytest.raises(UserError, match=r'cannot be downloaded \(404') as error_info:
        pretrained.read('gs://bucket/ViT.npz')
    assert '\n' not in str(error_info.value)


def test_a_private_bucket_is_asked_with_credentials(server, monkeypatch):
    server.files['/storage.googleapis.com/bucket/ViT.npz'] = 403
    locations = []

    def copy_private(location, file):
        locations.append(location)
        file.write(NPZ.read_bytes())

    monkeypatch.setattr(fetch, '_copy_private', copy_private)
    assert pretrained.read('gs://bucket/ViT.npz').architecture.sizes == SIZES
    assert locations == ['gs://bucket/ViT.npz']
    # Credentials are for buckets alone.
    server.files['/example.org/ViT.npz'] = 403
    with pytest.raises(UserError, match='403'):
        pretrained.read('https://example.org/ViT.npz')


def test_a_private_object_is_copied_whole_or_is_an_error(tmp_path):
    """TensorFlow reads a local path in the same way as a bucket."""
    with open(tmp_path / 'copy', 'wb') as file:
        fetch._copy_private(str(NPZ), file)
        assert file.tell() == NPZ.stat().st_size
        with pytest.raises(OSError, match=r'the bucket is private, and .*No such file'):
            fetch._copy_private(str(tmp_path / 'nothing'), file)


def test_without_a_network_one_line_says_what_to_do(monkeypatch, tmp_path):
    def urlopen(url, timeout):
        raise urllib.error.URLError(OSError(-2, 'Name or service not known'))

    monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
    monkeypatch.setenv('TD_JAX_CACHE', str(tmp_path))
    with pytest.raises(UserError) as error_info:
        pretrained.read('gs://vit_models/imagenet21k/ViT-B_32.npz')
    text = str(error_info.value)
    assert '\n' not in text
    assert 'Name or service not known' in text
    assert 'https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_32.npz' in text
    place = tmp_path / 'storage.googleapis.com/vit_models/imagenet21k/ViT-B_32.npz'
    assert f'put it at {place}' in text
    shutil.copy(NPZ, place)
    assert pretrained.read('gs://vit_models/imagenet21k/ViT-B_32.npz').architecture.sizes == SIZES


def test_a_cache_that_cannot_be_written_is_reported(server, tmp_path):
    server.cache.write_text('a file')
    with pytest.raises(UserError, match=r'cannot be downloaded \(Not a directory|File exists'):
        pretrained.read('https://example.org/ViT.npz')


@pytest.mark.parametrize(
    'location',
    [
        'ftp://a/b.npz',
        'http://a/b.npz',
        'https://a/',
        'https:///b',
        'https://a/../b.npz',
        'gs://',
        's3://a/b',
        'https://[a/b.npz',
    ],
)
def test_what_is_no_address_is_refused(server, location):
    with pytest.raises(UserError, match='is no address of a file'):
        pretrained.read(location)
    assert server.requests == []


def test_a_hub_model_is_its_folder(monkeypatch):
    def snapshot_download(name, allow_patterns):
        assert name == 'owner/na-me.1'
        assert allow_patterns == [
            'config.json',
            'model.safetensors',
            'model.safetensors.index.json',
            'preprocessor_config.json',
        ]
        return str(CLASSIFIER)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    checkpoint = pretrained.read('hf://owner/na-me.1')
    assert checkpoint.location == 'hf://owner/na-me.1'
    assert checkpoint.architecture.num_outputs == 7


def test_half_a_hub_model_is_not_taken_for_whole(monkeypatch, tmp_path):
    shutil.copy(BARE / 'config.json', tmp_path)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match=r'holds no model\.safetensors'):
        pretrained.read('hf://owner/name')


@pytest.mark.parametrize(
    'error', [FileNotFoundError('Off line.\nMore.'), ValueError('Odd.'), Exception('Other.')]
)
def test_a_hub_that_is_not_reached_is_one_line(monkeypatch, error):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    with pytest.raises(UserError) as error_info:
        pretrained.read('hf://owner/name')
    text = str(error_info.value)
    assert '\n' not in text
    assert (
        'Get config.json, model.safetensors and preprocessor_config.json from https://huggingface.co/owner/name'
        in text
    )


@pytest.mark.parametrize('location', ['hf://', 'hf://name', 'hf://a/b/c', 'hf://a/b?c'])
def test_a_hub_name_has_two_parts(location):
    with pytest.raises(UserError, match='it is hf://OWNER/NAME'):
        pretrained.read(location)
