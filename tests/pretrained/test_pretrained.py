"""Checkpoints against what their own implementations compute, and against every way they can be wrong."""

import contextlib
import http.server
import json
import math
import pathlib
import shutil
import threading
import urllib.request

import huggingface_hub
import jax
import numpy as np
import pytest
import scipy.ndimage
from safetensors.numpy import load_file, save_file

from configs import common
from td_jax import pretrained
from td_jax.errors import UserError
from td_jax.models import base, vit

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NPZ, PRE_LOGITS = GOLDEN / 'vit_tiny.npz', GOLDEN / 'vit_tiny_prelogits.npz'
BARE, CLASSIFIER = GOLDEN / 'hf_vit_tiny', GOLDEN / 'hf_vit_tiny_classifier'
SIZES = vit.Sizes(width=48, layers=6, mlp=96, heads=4)
BLOCK = 'Transformer/encoderblock_0'
LAYER = 'encoder.layer.0'
# Checkpoint, what to expect, side of the images there.
CASES = {
    'npz': (NPZ, GOLDEN / 'vit_tiny.expected.npz', 32),
    'npz with pre-logits': (PRE_LOGITS, GOLDEN / 'vit_tiny_prelogits.expected.npz', 32),
    'npz at 48 pixels': (PRE_LOGITS, GOLDEN / 'vit_tiny_prelogits_at48.expected.npz', 48),
    'hf with pooler': (BARE, BARE / 'expected.npz', 32),
    'hf with classifier': (CLASSIFIER, CLASSIFIER / 'expected.npz', 32),
}


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def initial(architecture, image_size=None, **changes):
    """A tree as `init` would make it, each value its own so that a copy is told from what it replaced."""
    architecture = architecture._replace(image_size=image_size or architecture.image_size, **changes)
    module = pretrained.module_of(architecture, split=0)
    image = np.zeros((1, architecture.image_size, architecture.image_size, 3), np.float32)
    tree = jax.eval_shape(module.init, jax.random.key(0), {'image': image})['params']
    return jax.tree.map(lambda x: np.full(x.shape, 7.0, np.float32), tree)


def flat(tree):
    return {'/'.join(key.key for key in path): x for path, x in jax.tree.leaves_with_path(tree)}


def close(actual, expected):
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.fixture(scope='module')
def checkpoints():
    """The four checkpoints, read once; no test changes them."""
    return {path: pretrained.read(str(path)) for path in (NPZ, PRE_LOGITS, BARE, CLASSIFIER)}


@pytest.fixture
def changed(tmp_path):
    """A function (change, path) -> a copy of an .npz whose arrays went through `change`."""

    def make(change, path=NPZ):
        values = arrays(path)
        change(values)
        np.savez(tmp_path / 'changed.npz', **values)
        return str(tmp_path / 'changed.npz')

    return make


@pytest.fixture
def changed_folder(tmp_path):
    """The same for a Hugging Face folder; `change` also gets the config."""

    def make(change, path=BARE):
        shutil.copytree(path, tmp_path / 'changed')
        values, config = load_file(path / 'model.safetensors'), json.loads((path / 'config.json').read_text())
        change(values, config)
        save_file(
            {key: np.ascontiguousarray(x) for key, x in values.items()},
            tmp_path / 'changed/model.safetensors',
        )
        (tmp_path / 'changed/config.json').write_text(json.dumps(config))
        return str(tmp_path / 'changed')

    return make


# What is computed from a checkpoint.


@pytest.mark.parametrize('case', CASES)
def test_every_state_is_the_originals(checkpoints, case):
    path, expected_path, side = CASES[case]
    expected = arrays(expected_path)
    checkpoint = checkpoints[path]
    architecture = checkpoint.architecture
    assert architecture.sizes == SIZES
    params, report = pretrained.fit(checkpoint, initial(architecture, side))
    assert report.resized == (('pos_embedding',) if side == 48 else ())
    assert report.unused == ()
    inputs = {'image': expected['images']}
    seen = set()

    def hold(key, value):
        if key in expected:
            close(value, expected[key])
            seen.add(key)

    for split in range(SIZES.layers + 1):
        model = base.from_module(pretrained.module_of(architecture, split))
        s = model.lower(params, inputs)
        hold(f'hidden_states.{split}', s)
        hold(f'Transformer.encoderblock_{split - 1}', s)
        e = model.upper(params, s)
        hold('last_hidden_state', e)
        hold('Transformer.encoder_norm', e)
        hold('logits', model.head(params, e))
    patches = vit.patches_of(expected['images'], 8)
    embedded = patches @ params['embedding']['kernel'] + params['embedding']['bias']
    hold('embedding', embedded.reshape(len(embedded), side // 8, side // 8, -1))
    hold('pos_embedding', params['pos_embedding'])
    token = np.asarray(e[:, 0])
    if architecture.pre_logits and side == 32:  # At 48 the original ran without it.
        layer = params['pre_logits_layer']
        token = token @ layer['kernel'] + layer['bias']  # It is before the tanh there.
    hold('pre_logits', token)
    assert seen == expected.keys() - {'images'}


@pytest.mark.parametrize('case', ['npz', 'hf with classifier'])
def test_the_other_gelu_would_be_noticed(checkpoints, case):
    path, expected_path, _ = CASES[case]
    expected, checkpoint = arrays(expected_path), checkpoints[path]
    other = {'gelu': 'gelu_tanh', 'gelu_tanh': 'gelu'}[checkpoint.architecture.activation]
    model = base.from_module(pretrained.module_of(checkpoint.architecture._replace(activation=other), 6))
    s = np.asarray(model.lower(checkpoint.params, {'image': expected['images']}))
    key = 'hidden_states.6' if path == CLASSIFIER else 'Transformer.encoderblock_5'
    assert np.abs(s - expected[key]).max() > 1e-4


def test_the_pooler_is_the_dense_before_the_head(checkpoints):
    raw, architecture = load_file(BARE / 'model.safetensors'), checkpoints[BARE].architecture
    tree, report = pretrained.fit(checkpoints[BARE], initial(architecture, num_outputs=48))
    assert set(report.initialised) == {'head_layer/bias', 'head_layer/kernel'}
    tree['head_layer'] = {'kernel': np.eye(48, dtype=np.float32), 'bias': np.zeros(48, np.float32)}
    model = base.from_module(pretrained.module_of(architecture._replace(num_outputs=48), 0))
    e = arrays(BARE / 'expected.npz')['last_hidden_state']
    expected = np.tanh(e[:, 0] @ raw['pooler.dense.weight'].T + raw['pooler.dense.bias'])
    close(model.head(tree, e), expected)


# What is read.


def test_architectures_are_read_from_the_shapes(checkpoints):
    google = pretrained.Architecture(SIZES, 8, 32, 10, 'gelu_tanh', 1e-6, False)
    assert checkpoints[NPZ].architecture == google
    assert checkpoints[PRE_LOGITS].architecture == google._replace(num_outputs=37, pre_logits=True)
    hugging_face = google._replace(activation='gelu', num_outputs=0, pre_logits=True)
    assert checkpoints[BARE].architecture == hugging_face
    assert checkpoints[CLASSIFIER].architecture == hugging_face._replace(num_outputs=7, pre_logits=False)
    for checkpoint in checkpoints.values():
        params = flat(checkpoint.params)
        assert {name: x.shape for name, x in params.items()} == pretrained.shapes(checkpoint.architecture)
        assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}
        assert checkpoint.unused == ()
    assert 'head_layer' not in checkpoints[BARE].params


def old_names(values):
    """As files from before Linen count: through all modules of a block."""
    new = {
        'LayerNorm_1': 'LayerNorm_2',
        'MultiHeadDotProductAttention_0': 'MultiHeadDotProductAttention_1',
        'MlpBlock_0': 'MlpBlock_3',
    }
    for name in list(values):
        parts = [new.get(part, part) for part in name.split('/')]
        values['/'.join(parts)] = values.pop(name)


def test_the_older_names_are_read_alike(checkpoints, changed):
    read = pretrained.read(changed(old_names, PRE_LOGITS))
    assert 'MlpBlock_3' in str(list(arrays(read.location)))
    assert read.architecture == checkpoints[PRE_LOGITS].architecture
    assert read.unused == ()
    jax.tree.map(np.testing.assert_array_equal, read.params, checkpoints[PRE_LOGITS].params)


def test_a_head_of_21843_is_read_and_replaced_for_other_labels(changed):
    def change(values):
        values['head/kernel'] = np.ones((48, 21843), np.float16)
        values['head/bias'] = np.zeros(21843, np.float16)

    checkpoint = pretrained.read(changed(change))
    assert checkpoint.architecture.num_outputs == 21843
    assert checkpoint.params['head_layer']['kernel'].dtype == np.float32
    params, report = pretrained.fit(checkpoint, initial(checkpoint.architecture))
    assert report.initialised == report.unused == ()
    assert (params['head_layer']['kernel'] == 1).all()
    params, report = pretrained.fit(checkpoint, initial(checkpoint.architecture, num_outputs=10))
    assert set(report.initialised) == set(report.unused) == {'head_layer/kernel', 'head_layer/bias'}
    assert (params['head_layer']['kernel'] == 7).all()
    assert params['head_layer']['kernel'].shape == (48, 10)


def without_head(values):
    del values['head/kernel'], values['head/bias']


def with_zero_head(values):
    values['head/kernel'][:] = 0


def with_empty_head(values):
    values['head/kernel'], values['head/bias'] = np.zeros((48, 0), np.float32), np.zeros(0, np.float32)


@pytest.mark.parametrize('change', [without_head, with_zero_head, with_empty_head])
def test_a_head_that_was_never_trained_is_none(changed, change):
    checkpoint = pretrained.read(changed(change))
    assert checkpoint.architecture.num_outputs == 0
    assert 'head_layer' not in checkpoint.params
    params, report = pretrained.fit(checkpoint, initial(checkpoint.architecture, num_outputs=10))
    assert set(report.initialised) == {'head_layer/kernel', 'head_layer/bias'}
    assert (params['head_layer']['kernel'] == 7).all()
    assert set(report.unused) == (set() if change is without_head else {'head/kernel', 'head/bias'})


@pytest.mark.parametrize(
    'key',
    [
        'embedding/kernel',
        'embedding/bias',
        'cls',
        'Transformer/posembed_input/pos_embedding',
        'Transformer/encoder_norm/scale',
        f'{BLOCK}/LayerNorm_0/bias',
        f'{BLOCK}/LayerNorm_1/scale',
        f'{BLOCK}/MultiHeadDotProductAttention_0/query/kernel',
        f'{BLOCK}/MlpBlock_0/Dense_0/kernel',
        'Transformer/encoderblock_3/MlpBlock_0/Dense_1/bias',
        'head/bias',
    ],
)
def test_a_missing_key_is_named(changed, key):
    with pytest.raises(UserError, match=rf'{key} is missing'):
        pretrained.read(changed(lambda values: values.pop(key)))


@pytest.mark.parametrize('norm', [0, 1])
def test_a_missing_norm_is_not_taken_for_the_other_one(changed, norm):
    def change(values):
        for leaf in ('scale', 'bias'):
            del values[f'{BLOCK}/LayerNorm_{norm}/{leaf}']

    with pytest.raises(UserError, match=rf'LayerNorm_{norm}/\w+ is missing'):
        pretrained.read(changed(change))


def test_a_missing_block_is_named(changed):
    def change(values):
        for name in [name for name in values if '_2/' in name]:
            del values[name]

    with pytest.raises(UserError, match=r'encoderblock_2/\S+ is missing'):
        pretrained.read(changed(change))


@pytest.mark.parametrize(
    ('key', 'shape', 'text'),
    [
        ('embedding/kernel', (8, 8, 1, 48), r'embedding/kernel is \[8, 8, 1, 48\]'),
        ('embedding/kernel', (1, 1, 1024, 48), r'\[patch, patch, 3, width\]'),
        ('embedding/kernel', (192, 48), 'it has 4 axes'),
        ('cls', (1, 1, 47), r'cls is \[1, 1, 47\]; .* \[1, 1, 48\]'),
        (f'{BLOCK}/MlpBlock_0/Dense_1/kernel', (48, 96), r'Dense_1/kernel is \[48, 96\]; .* \[96, 48\]'),
        (f'{BLOCK}/MultiHeadDotProductAttention_0/key/bias', (48,), 'key/bias is .* it has 2 axes'),
        (
            f'{BLOCK}/MultiHeadDotProductAttention_0/query/kernel',
            (48, 5, 12),
            '5 attention heads do not divide',
        ),
        ('Transformer/posembed_input/pos_embedding', (1, 16, 48), r'\[1, 16, 48\] .* square grid'),
        ('Transformer/posembed_input/pos_embedding', (1, 1, 48), 'square grid'),
        ('Transformer/posembed_input/pos_embedding', (1, 0, 48), 'none of them empty'),
    ],
)
def test_a_wrong_shape_is_named(changed, key, shape, text):
    with pytest.raises(UserError, match=text):
        pretrained.read(changed(lambda values: values.update({key: np.zeros(shape, np.float32)})))


def test_numbers_of_another_kind_are_refused(changed):
    with pytest.raises(UserError, match='cls is of int32'):
        pretrained.read(changed(lambda values: values.update(cls=values['cls'].astype(np.int32))))


@pytest.mark.parametrize(
    ('name', 'ours'), [('gelu', 'gelu'), ('gelu_new', 'gelu_tanh'), ('gelu_pytorch_tanh', 'gelu_tanh')]
)
def test_activation_and_epsilon_come_from_the_config(changed_folder, name, ours):
    folder = changed_folder(lambda _, config: config.update(hidden_act=name, layer_norm_eps=1e-12))
    architecture = pretrained.read(folder).architecture
    assert (architecture.activation, architecture.epsilon) == (ours, 1e-12)


def test_what_a_config_leaves_out_is_as_in_transformers(changed_folder):
    def change(_, config):
        for key in ('hidden_act', 'layer_norm_eps', 'num_hidden_layers', 'num_attention_heads', 'model_type'):
            del config[key]

    architecture = pretrained.read(changed_folder(change)).architecture
    assert architecture.sizes == SIZES._replace(heads=12)
    assert (architecture.activation, architecture.epsilon) == ('gelu', 1e-12)


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'hidden_act': 'relu'}, "hidden_act 'relu' is not known. Known: gelu, gelu_new"),
        ({'model_type': 'deit'}, "model_type 'deit'"),
        ({'pooler_act': 'relu'}, "pooler_act 'relu'"),
        ({'num_attention_heads': 5}, '5 attention heads do not divide the width, 48'),
        ({'num_attention_heads': 0}, 'num_attention_heads is 0'),
        ({'layer_norm_eps': '1e-6'}, "layer_norm_eps is '1e-6'"),
        ({'num_hidden_layers': 7}, r'encoder\.layer\.6\.\S+ is missing'),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changed_folder, changes, text):
    with pytest.raises(UserError, match=text):
        pretrained.read(changed_folder(lambda _, config: config.update(changes)))


@pytest.mark.parametrize(('path', 'prefix'), [(BARE, ''), (CLASSIFIER, 'vit.')], ids=['bare', 'under vit.'])
def test_a_missing_tensor_is_named_as_in_the_file(changed_folder, path, prefix):
    key = f'{prefix}encoder.layer.4.attention.output.dense.bias'
    with pytest.raises(UserError, match=f' {key} is missing'):
        pretrained.read(changed_folder(lambda values, _: values.pop(key), path))


def test_a_transposed_tensor_is_refused(changed_folder):
    key = f'{LAYER}.intermediate.dense.weight'
    other = f'{LAYER}.output.dense.weight'
    with pytest.raises(UserError, match=rf'{other} is \[96, 48\]; .* \[48, 96\]'):
        pretrained.read(changed_folder(lambda values, _: values.update({other: values[key]})))


def test_attention_without_biases_has_zeros(changed_folder):
    def change(values, config):
        config['qkv_bias'] = False
        for name in [name for name in values if name.endswith(('query.bias', 'key.bias', 'value.bias'))]:
            del values[name]

    checkpoint = pretrained.read(changed_folder(change))
    assert not checkpoint.params['block_5']['attention']['key']['bias'].any()


def test_a_classifier_reads_the_token_and_not_the_pooler(changed_folder):
    def change(values, _):
        values['vit.pooler.dense.weight'] = np.zeros((48, 48), np.float32)
        values['vit.pooler.dense.bias'] = np.zeros(48, np.float32)

    checkpoint = pretrained.read(changed_folder(change, CLASSIFIER))
    assert not checkpoint.architecture.pre_logits
    assert checkpoint.unused == ('vit.pooler.dense.bias', 'vit.pooler.dense.weight')


def test_half_precision_becomes_float32(changed_folder):
    def change(values, _):
        values.update({name: x.astype(jax.numpy.bfloat16) for name, x in values.items()})

    params = flat(pretrained.read(changed_folder(change)).params)
    assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}


# Files that are not there, or not whole.


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    whole = NPZ.read_bytes()
    (tmp_path / 'part.npz').write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r'part\.npz is damaged or no \.npz'):
        pretrained.read(str(tmp_path / 'part.npz'))
    shutil.copytree(BARE, tmp_path / 'folder')
    whole = (BARE / 'model.safetensors').read_bytes()
    (tmp_path / 'folder/model.safetensors').write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r'model\.safetensors is damaged or no \.safetensors'):
        pretrained.read(str(tmp_path / 'folder'))


def test_a_flipped_bit_is_noticed(tmp_path):
    whole = bytearray(NPZ.read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / 'flipped.npz').write_bytes(whole)
    with pytest.raises(UserError, match='is damaged'):
        pretrained.read(str(tmp_path / 'flipped.npz'))


def test_what_could_run_code_is_not_read(tmp_path):
    np.savez(tmp_path / 'objects.npz', cls=np.array([{}], dtype=object))
    with pytest.raises(UserError, match='Object arrays cannot be loaded'):
        pretrained.read(str(tmp_path / 'objects.npz'))


def test_a_lone_array_is_no_checkpoint(tmp_path):
    np.save(tmp_path / 'lone.npy', np.zeros(3))
    with pytest.raises(UserError, match=r'lone\.npy is damaged or no \.npz'):
        pretrained.read(str(tmp_path / 'lone.npy'))


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_a_folder_with_a_file_missing_says_which(tmp_path, name):
    shutil.copytree(BARE, tmp_path / 'folder')
    (tmp_path / 'folder' / name).unlink()
    with pytest.raises(UserError, match=f'holds no {name}'):
        pretrained.read(str(tmp_path / 'folder'))


def test_a_config_that_is_no_json_is_refused(tmp_path):
    shutil.copytree(BARE, tmp_path / 'folder')
    (tmp_path / 'folder/config.json').write_text('{"hidden_act": ')
    with pytest.raises(UserError, match=r'config\.json cannot be read'):
        pretrained.read(str(tmp_path / 'folder'))


def test_weights_without_their_folder_are_refused():
    with pytest.raises(UserError, match=r'give its folder, which holds config\.json'):
        pretrained.read(str(BARE / 'model.safetensors'))


def test_a_file_that_is_not_there_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError) as caught:
        pretrained.read(str(tmp_path / 'ViT-B_32.npz'))
    text = str(caught.value)
    assert f'{tmp_path}/ViT-B_32.npz is not there' in text
    assert 'https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_32.npz' in text
    with pytest.raises(UserError, match=r'nowhere is not there; give an \.npz'):
        pretrained.read(str(tmp_path / 'nowhere'))


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    shutil.copy(NPZ, tmp_path / 'mine.npz')
    assert pretrained.read('~/mine.npz').architecture.sizes == SIZES


# Downloads, from a server of our own.


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A web server in place of the world, and an empty cache.

    Yields a namespace: `files` (path -> bytes, or a status), `asked` (paths so far), `cut` (bytes that are
    promised and never sent) and `cache`.
    """

    class State:
        files, asked, cut, cache = {}, [], 0, tmp_path / 'cache'

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            State.asked.append(self.path)
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

    State.files, State.asked = {}, []
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


def kept(cache):
    return [str(path.relative_to(cache)) for path in cache.rglob('*') if path.is_file()]


@pytest.mark.parametrize(
    ('location', 'asked'),
    [
        ('https://example.org/a/ViT.npz', '/example.org/a/ViT.npz'),
        ('gs://bucket/a/ViT.npz', '/storage.googleapis.com/bucket/a/ViT.npz'),
    ],
)
def test_a_download_happens_once(server, checkpoints, location, asked):
    server.files[asked] = NPZ.read_bytes()
    for _ in range(2):
        checkpoint = pretrained.read(location)
        assert checkpoint.location == location
        jax.tree.map(np.testing.assert_array_equal, checkpoint.params, checkpoints[NPZ].params)
    assert server.asked == [asked]
    assert kept(server.cache) == [asked.removeprefix('/')]


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
    assert kept(server.cache) == []
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
    assert kept(server.cache) == []


def test_a_file_that_is_not_published_is_told_in_one_line(server):
    with pytest.raises(UserError, match=r'cannot be downloaded \(404') as caught:
        pretrained.read('gs://bucket/ViT.npz')
    assert '\n' not in str(caught.value)


def test_a_private_bucket_is_asked_with_credentials(server, monkeypatch):
    server.files['/storage.googleapis.com/bucket/ViT.npz'] = 403
    asked = []

    def copy_private(location, file):
        asked.append(location)
        file.write(NPZ.read_bytes())

    monkeypatch.setattr(pretrained, '_copy_private', copy_private)
    assert pretrained.read('gs://bucket/ViT.npz').architecture.sizes == SIZES
    assert asked == ['gs://bucket/ViT.npz']
    # An address that is not of a bucket has no such way.
    server.files['/example.org/ViT.npz'] = 403
    with pytest.raises(UserError, match='403'):
        pretrained.read('https://example.org/ViT.npz')


def test_a_private_object_is_copied_whole_or_is_an_error(tmp_path):
    """TensorFlow reads any path as it reads a bucket."""
    with open(tmp_path / 'copy', 'wb') as file:
        pretrained._copy_private(str(NPZ), file)
        assert file.tell() == NPZ.stat().st_size
        with pytest.raises(OSError, match=r'the bucket is private, and .*No such file'):
            pretrained._copy_private(str(tmp_path / 'nothing'), file)


def test_without_a_network_one_line_says_what_to_do(monkeypatch, tmp_path):
    def urlopen(url, timeout):
        raise urllib.error.URLError(OSError(-2, 'Name or service not known'))

    monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
    monkeypatch.setenv('TD_JAX_CACHE', str(tmp_path))
    with pytest.raises(UserError) as caught:
        pretrained.read('gs://vit_models/imagenet21k/ViT-B_32.npz')
    text = str(caught.value)
    assert '\n' not in text
    assert 'Name or service not known' in text
    assert 'https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_32.npz' in text
    place = tmp_path / 'storage.googleapis.com/vit_models/imagenet21k/ViT-B_32.npz'
    assert f'put it at {place}' in text
    shutil.copy(NPZ, place)
    assert pretrained.read('gs://vit_models/imagenet21k/ViT-B_32.npz').architecture.sizes == SIZES


def test_a_cache_that_cannot_be_written_is_told(server, tmp_path):
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
    assert server.asked == []


def test_a_hub_model_is_its_folder(monkeypatch):
    def snapshot_download(name, allow_patterns):
        assert (name, allow_patterns) == ('owner/na-me.1', ['config.json', 'model.safetensors'])
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
    with pytest.raises(UserError) as caught:
        pretrained.read('hf://owner/name')
    text = str(caught.value)
    assert '\n' not in text
    assert 'Get config.json and model.safetensors from https://huggingface.co/owner/name' in text


@pytest.mark.parametrize('location', ['hf://', 'hf://name', 'hf://a/b/c', 'hf://a/b?c'])
def test_a_hub_name_has_two_parts(location):
    with pytest.raises(UserError, match='it is hf://OWNER/NAME'):
        pretrained.read(location)


# How a checkpoint enters a model.


def test_everything_is_loaded_into_its_own_architecture(checkpoints):
    checkpoint = checkpoints[PRE_LOGITS]
    params, report = pretrained.fit(checkpoint, initial(checkpoint.architecture))
    jax.tree.map(np.testing.assert_array_equal, params, checkpoint.params)
    assert set(report.loaded) == flat(checkpoint.params).keys()
    assert report[1:] == ((), (), ())
    assert pretrained.describe(report) == '106 parameters loaded'


def test_pre_logits_that_the_model_lacks_take_the_head_along(checkpoints):
    """A head reads what stands before it."""
    checkpoint = checkpoints[PRE_LOGITS]
    params, report = pretrained.fit(checkpoint, initial(checkpoint.architecture, pre_logits=False))
    assert 'pre_logits_layer' not in params
    assert set(report.initialised) == {'head_layer/kernel', 'head_layer/bias'}
    assert {name.split('/')[0] for name in report.unused} == {'pre_logits_layer', 'head_layer'}


def test_pre_logits_that_the_checkpoint_lacks_are_refused(checkpoints):
    checkpoint = checkpoints[NPZ]
    with pytest.raises(UserError, match=r'no pre_logits_layer/\w+, .* Set pre_logits=False'):
        pretrained.fit(checkpoint, initial(checkpoint.architecture, pre_logits=True))


def test_a_shallow_model_takes_the_first_blocks(checkpoints):
    checkpoint = checkpoints[NPZ]
    params, report = pretrained.fit(
        checkpoint, initial(checkpoint.architecture, sizes=SIZES._replace(layers=4))
    )
    assert {name.split('/')[0] for name in report.unused} == {'block_4', 'block_5'}
    np.testing.assert_array_equal(
        params['block_3']['mlp_in']['kernel'], checkpoint.params['block_3']['mlp_in']['kernel']
    )


@pytest.mark.parametrize(
    ('sizes', 'text'),
    [
        (SIZES._replace(mlp=97), r'mlp_in/\w+ is \[.*96\] in .*vit_tiny\.npz, but \[.*97\] in the model'),
        (SIZES._replace(heads=6), r'attention/\w+/\w+ is \[.*4, 12.*\] in .*, but \[.*6, 8.*\] in the model'),
        (SIZES._replace(width=52), r'key/bias is \[4, 12\] in .*, but \[4, 13\] in the model'),
        (SIZES._replace(layers=7), r'has no block_6/\S+, \['),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(checkpoints, sizes, text):
    checkpoint = checkpoints[NPZ]
    with pytest.raises(UserError, match=text):
        pretrained.fit(checkpoint, initial(checkpoint.architecture, sizes=sizes))


def test_the_report_is_a_few_lines(checkpoints):
    checkpoint = checkpoints[PRE_LOGITS]._replace(unused=('odd/kernel',))
    tree = initial(
        checkpoint.architecture, 48, num_outputs=3, pre_logits=False, sizes=SIZES._replace(layers=1)
    )
    _, report = pretrained.fit(checkpoint, tree)
    assert pretrained.describe(report).splitlines() == [
        '21 parameters loaded',
        '1 resized: pos_embedding',
        '2 newly initialised: head_layer',
        '85 unused: block_1, block_2, block_3, block_4, block_5 and 3 more',
    ]


# Position embeddings.


def make_positions(side, width=3, seed=5):
    return np.random.default_rng(seed).normal(size=(1, 1 + side * side, width)).astype(np.float32) + 4


def test_positions_of_equal_size_stay_bit_for_bit():
    positions = make_positions(7)
    assert pretrained.resize_positions(positions, 49) is positions


def test_a_grid_that_is_not_square_stays_where_nothing_changes():
    positions = make_positions(1)[:, [0, 1, 1, 1]]
    assert pretrained.resize_positions(positions, 3) is positions


@pytest.mark.parametrize(('old', 'new'), [(3, 4), (9, 8), (9, 0), (9, -1)])
def test_a_grid_that_is_not_square_is_refused(old, new):
    positions = np.zeros((1, 1 + old, 2), np.float32)
    bad = old if math.isqrt(old) ** 2 != old else new
    with pytest.raises(UserError, match=f'{bad} patches are no square grid'):
        pretrained.resize_positions(positions, new)


def bilinear(grid, new):
    """[old, old, width] -> [new, new, width], corners on corners, by the definition."""
    old = len(grid)
    at = np.linspace(0, old - 1, new)
    low = np.minimum(at.astype(int), max(old - 2, 0))
    weights = np.zeros((new, old))
    weights[np.arange(new), low] = 1 - (at - low)
    weights[np.arange(new), np.minimum(low + 1, old - 1)] += at - low
    return np.einsum('ai,bj,ijw->abw', weights, weights, grid)


def test_positions_are_stretched_linearly():
    for old in range(1, 33):
        positions = make_positions(old)
        for new in {1, 2, 3, 5, old // 2 or 1, old - 1 or 1, old + 1, 2 * old, 3 * old // 2}:
            result = pretrained.resize_positions(positions, new * new)
            assert result.shape == (1, 1 + new * new, 3)
            assert result.dtype == np.float32
            np.testing.assert_array_equal(result[:, 0], positions[:, 0])
            expected = bilinear(positions[0, 1:].reshape(old, old, 3), new)
            np.testing.assert_allclose(result[0, 1:].reshape(new, new, 3), expected, atol=1e-5)


@pytest.mark.parametrize(('old', 'new'), [(7, 12), (14, 24), (16, 24), (4, 6), (14, 7)])
def test_positions_are_the_originals(old, new):
    positions = make_positions(old)
    grid = positions[0, 1:].reshape(old, old, 3)
    expected = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    result = pretrained.resize_positions(positions, new * new)
    np.testing.assert_array_equal(result[0, 1:].reshape(new, new, 3), expected)


# Architectures and configs.


@pytest.mark.parametrize(
    ('variant', 'total'),
    [
        ('Ti/16', 5_717_416),
        ('S/16', 22_050_664),
        ('S/32', 22_878_952),
        ('B/8', 86_576_872),
        ('B/16', 86_567_656),
        ('B/32', 88_224_232),
        ('L/16', 304_326_632),
        ('L/32', 306_535_400),
    ],
)
def test_parameter_counts_are_the_published_ones(variant, total):
    """At 224 pixels with 1,000 classes."""
    config = common.model_config()
    config.variant = variant
    sizes, patch = vit.sizes_of(config)
    architecture = pretrained.Architecture(sizes, patch, 224, 1000, 'gelu', 1e-6, False)
    assert sum(map(math.prod, pretrained.shapes(architecture).values())) == total
    width, layers, mlp, _ = sizes
    tokens = 1 + (224 // patch) ** 2
    attention = 4 * (width * width + width)
    block = attention + (width * mlp + mlp) + (mlp * width + width) + 2 * (2 * width)
    embedding = (patch * patch * 3 * width + width) + width + tokens * width
    assert embedding + layers * block + 2 * width + (width * 1000 + 1000) == total
    with_pre_logits = pretrained.shapes(architecture._replace(pre_logits=True))
    assert sum(map(math.prod, with_pre_logits.values())) == total + width * width + width


def make_config(**changes):
    config = common.model_config()
    config.update({'name': 'vit', **changes})
    return config


TINY = {'width': 48, 'layers': 6, 'mlp': 96, 'heads': 4, 'patch': 8}


def test_a_config_that_fits_passes(checkpoints):
    pretrained.check_architecture(checkpoints[NPZ], make_config(**TINY))
    pretrained.check_architecture(checkpoints[NPZ], make_config(**TINY, variant='L/16'))


def test_every_field_that_differs_is_named_with_its_cure(checkpoints):
    config = make_config(**{**TINY, 'layers': 5}, epsilon=1e-12)
    with pytest.raises(UserError) as caught:
        pretrained.check_architecture(checkpoints[BARE], config, 'model')
    assert str(caught.value) == (
        f'{BARE} does not fit model: layers is 6 there, 5 here, activation is gelu there, gelu_tanh here, '
        'epsilon is 1e-06 there, 1e-12 here, pre_logits is True there, False here; set model.layers=6 '
        'model.activation=gelu model.epsilon=1e-06 model.pre_logits=True'
    )


BASE = pretrained.Architecture(vit.VARIANTS['B'], 16, 224, 1000, 'gelu_tanh', 1e-6, False)


@pytest.mark.parametrize(
    ('architecture', 'changes', 'expected'),
    [
        (BASE, {'variant': 'B/16'}, ()),
        (BASE, {'variant': 'B/32', 'patch': 16}, ()),
        (BASE, {}, ('variant=B/16',)),
        (BASE, {'name': 'mlp', 'variant': 'B/16'}, ('name=vit',)),
        (BASE, {'variant': 'L/32', 'layers': 4}, ('variant=B/16', 'layers=0')),
        (BASE, {'variant': 'B/16', 'layers': 4, 'heads': 12}, ('layers=0',)),
        (BASE._replace(epsilon=1e-12), {'variant': 'B/16'}, ('epsilon=1e-12',)),
        (BASE._replace(activation='gelu'), {'variant': 'B/16'}, ('activation=gelu',)),
        (BASE._replace(patch=14), {}, ('patch=14',)),
        (BASE._replace(sizes=BASE.sizes._replace(layers=5)), {'variant': 'B/16'}, ('layers=5',)),
    ],
)
def test_overrides_are_few_and_do(architecture, changes, expected):
    config = make_config(**changes)
    assert pretrained.overrides(architecture, config, 'm') == tuple(f'm.{change}' for change in expected)
    for change in expected:
        key, value = change.split('=')
        with contextlib.suppress(ValueError):
            value = type(config[key])(float(value))
        config[key] = value
    assert pretrained.overrides(architecture, config) == ()
