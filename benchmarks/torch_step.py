"""The steps of benchmarks.torch_peer in PyTorch, compiled. Runs where PyTorch is, without td_jax.

    python benchmarks/torch_step.py CASE.npz [STEPS REPEATS]

CASE.npz is what torch_peer.write_case wrote. Prints a JSON object: `losses`, those of the first steps, and
with STEPS and REPEATS `seconds`, those of one step in the fastest of REPEATS times STEPS steps.
"""

import json
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F

EPSILON = 1e-6


# --- Parameters and inputs -------------------------------------------------------------------------


def make_tree(arrays, prefix):
    """Nests arrays by the parts of their names after a prefix, with PyTorch's layout of a linear layer."""
    tree = {}
    for name, array in arrays.items():
        if name.startswith(f'{prefix}/'):
            *path, leaf = name.split('/')[1:]
            place = tree
            for part in path:
                place = place.setdefault(part, {})
            place[leaf] = torch.from_numpy(array)
    return _change_layout(tree)


def _change_layout(tree, name=''):
    """Kernels [in, out] become weights [out, in], those of the parts of one input a single weight."""
    if not isinstance(tree, dict):
        return tree
    kernels = [tree[key] for key in sorted(tree) if key.startswith('kernel')]
    if not kernels:
        return {key: _change_layout(value, key) for key, value in tree.items()}
    if kernels[0].ndim == 3:
        # Attention: [width, heads, features] of query, key and value, [heads, features, width] of `out`.
        kernels = [kernels[0].flatten(0, 1) if name == 'out' else kernels[0].flatten(1, 2)]
    return {'weight': torch.cat(kernels).T.contiguous(), 'bias': tree['bias'].flatten()}


def list_leaves(tree):
    if not isinstance(tree, dict):
        return [tree]
    return [leaf for value in tree.values() for leaf in list_leaves(value)]


# --- Models: inputs -> lower -> s -> upper -> e -> head -> predictions -----------------------------


def linear(layer, x):
    return F.linear(x, layer['weight'], layer['bias'])


def norm(layer, x):
    return F.layer_norm(x, x.shape[-1:], layer['scale'], layer['bias'], EPSILON)


class MLP:
    """An MLP over embeddings of ids and bags of words."""

    def __init__(self, params, sizes):
        self.params, self.split = params, sizes['split']
        self.names = sizes['inputs']
        self.hidden = [params[f'hidden_layers_{i}'] for i in range(sizes['layers'])]

    def lower(self, inputs):
        parts = []
        for name in self.names:
            x, table = inputs[name], self.params[f'{name}_embedding']['embedding']
            parts.append(x @ table if x.is_floating_point() else F.embedding(x, table))
        return self._run(self.hidden[: self.split], torch.cat(parts, dim=-1))

    def upper(self, s):
        return self._run(self.hidden[self.split :], s)

    def head(self, e):
        return linear(self.params['output_layer'], e)

    def _run(self, layers, x):
        for layer in layers:
            x = F.relu(linear(layer, x))
        return x


class ViT:
    """A Vision Transformer whose head reads the class token."""

    def __init__(self, params, sizes):
        self.params, self.split = params, sizes['split']
        self.patch, self.heads = sizes['patch'], sizes['heads']
        self.blocks = [params[f'block_{i}'] for i in range(sizes['layers'])]

    def lower(self, inputs):
        images, patch = inputs['image'], self.patch
        batch, height, width, channels = images.shape
        x = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)
        x = linear(self.params['embedding'], x)
        x = torch.cat([self.params['cls'].expand(batch, 1, -1), x], dim=1) + self.params['pos_embedding']
        return self._run(self.blocks[: self.split], x)

    def upper(self, s):
        return norm(self.params['norm'], self._run(self.blocks[self.split :], s))

    def head(self, e):
        return linear(self.params['head_layer'], e[:, 0])

    def _run(self, blocks, x):
        for block in blocks:
            attention = block['attention']
            y = norm(block['attention_norm'], x)
            heads = [
                linear(attention[name], y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for name in ('query', 'key', 'value')
            ]
            y = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
            x = x + linear(attention['out'], y)
            y = linear(block['mlp_in'], norm(block['mlp_norm'], x))
            x = x + linear(block['mlp_out'], F.gelu(y, approximate='tanh'))
        return x


MODELS = {'mlp': MLP, 'vit': ViT}
TASK_LOSSES = {
    'regression': lambda predictions, labels: F.mse_loss(predictions[:, 0], labels),
    'classification': F.cross_entropy,
}


# --- The conversation ------------------------------------------------------------------------------


def run_hidden(layer, *parts):
    x = torch.cat(parts, dim=-1)
    return F.relu(linear(layer, F.layer_norm(x, x.shape[-1:], eps=EPSILON)))


def encode(params, s, e):
    return linear(params['message'], run_hidden(params['hidden'], s, e))


def decode(params, message):
    x = run_hidden(params['hidden'], message)
    return linear(params['lower'], x), linear(params['upper'], x)


def distance(state, other):
    """The mean squared difference of two states, both parts joined."""
    widths = [part.shape[-1] for part in state]
    parts = zip(widths, state, other, strict=True)
    return sum(width * F.mse_loss(a, b) for width, a, b in parts) / sum(widths)


def compute_terms(params, student, teacher, student_state, teacher_state):
    """The terms of TD with one round."""
    student_message = encode(params['student_encoder'], *student_state)
    teacher_message = encode(params['teacher_encoder'], *teacher_state)
    decoded_by_student = decode(params['student_decoder'], teacher_message)
    decoded_by_teacher = decode(params['teacher_decoder'], student_message)
    lower, _ = decoded_by_teacher
    answer = encode(params['teacher_encoder'], lower, teacher.upper(lower))
    return {
        'message': F.mse_loss(student_message, teacher_message),
        'state': distance(student_state, decoded_by_student) + distance(teacher_state, decoded_by_teacher),
        'interact': distance(student_state, decode(params['student_decoder'], answer)),
    }


# --- A step ----------------------------------------------------------------------------------------


class Case:
    """A student that is trained on one batch, as CASE.npz describes."""

    def __init__(self, path):
        with np.load(path) as file:
            arrays = dict(file)
        self.spec = spec = json.loads(str(arrays.pop('spec')))
        self.params = {group: make_tree(arrays, group) for group in ('student', 'communication')}
        self.groups = [leaves for tree in self.params.values() if (leaves := list_leaves(tree))]
        leaves = [leaf.requires_grad_() for group in self.groups for leaf in group]
        self.student = MODELS[spec['model']](self.params['student'], spec['student'])
        self.teacher = MODELS[spec['model']](make_tree(arrays, 'teacher'), spec['teacher'])
        self.inputs = make_tree(arrays, 'inputs')
        self.labels = torch.from_numpy(arrays['labels'])
        # A teacher whose states are given does not run in the step.
        self.states = [torch.from_numpy(arrays[f'states/{i}']) for i in range(2) if 'states/0' in arrays]
        # The configs have no weight decay.
        self.optimizer = torch.optim.AdamW(leaves, spec['learning_rate'], weight_decay=0.0, fused=True)
        self.compute_loss = torch.compile(self._compute_loss)

    def _compute_loss(self):
        s = self.student.lower(self.inputs)
        e = self.student.upper(s)
        loss = TASK_LOSSES[self.spec['task']](self.student.head(e), self.labels)
        if not self.spec['weights']:
            return loss
        teacher_state = self.states or self._compute_teacher_state()
        params = self.params['communication']
        terms = compute_terms(params, self.student, self.teacher, (s, e), teacher_state)
        return loss + sum(self.spec['weights'][name] * term for name, term in terms.items())

    def _compute_teacher_state(self):
        s = self.teacher.lower(self.inputs)
        return s, self.teacher.upper(s)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.compute_loss()
        loss.backward()
        if self.spec['clip_norm']:
            for group in self.groups:
                torch.nn.utils.clip_grad_norm_(group, self.spec['clip_norm'])
        self.optimizer.step()
        return loss.detach()


def measure(case, steps, repeats):
    """Seconds per step in the fastest of some repeats."""
    fastest = np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(steps):
            loss = case.step()
        loss.item()
        fastest = min(fastest, (time.perf_counter() - began) / steps)
    return fastest


def main(path, steps=0, repeats=1):
    case = Case(path)
    result = {'losses': [case.step().item() for _ in range(case.spec['compared'])]}
    if int(steps):
        result['seconds'] = measure(case, int(steps), int(repeats))
    print(json.dumps(result))


if __name__ == '__main__':
    main(*sys.argv[1:])
