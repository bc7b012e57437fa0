"""Talking-model Distillation in one file of plain JAX: two models, one loop, no config and no checkpoints.

    python -m examples.minimal_td

A teacher learns the digits 0 to 4 and is then frozen. Students learn the digits 5 to 9 from ten images per
class, alone and in conversation with the teacher. It prints the mean test accuracy of both within half a
minute; on so small a task no method helps. A step computes what td_jax's own does with method td.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets
import sklearn.model_selection

from td_jax import losses
from td_jax.method.communication import Decoder, Encoder

WIDTHS = {'student': (64, 32, 16, 5), 'teacher': (64, 128, 64, 5)}
IMAGES_PER_CLASS, BATCH_SIZE, STEPS, STUDENTS = 10, 32, 300, 5
WEIGHTS, ROUNDS = {'message': 0.1, 'state': 0.1, 'interact': 0.1}, 2
OPTIMIZER = optax.adam(1e-3)


# --- A model: images -> lower -> s -> upper -> e -> head -> logits ---------------------------------


def init_model(key, widths):
    """A perceptron of three layers."""
    model = {}
    for i, name in enumerate(('lower', 'upper', 'head')):
        kernel = jax.nn.initializers.lecun_normal()(jax.random.fold_in(key, i), widths[i : i + 2])
        model[name] = {'kernel': kernel, 'bias': jnp.zeros(widths[i + 1])}
    return model


def run_dense(layer, x):
    return x @ layer['kernel'] + layer['bias']


def run_upper(model, s):
    return jax.nn.relu(run_dense(model['upper'], s))


def run_model(model, images):
    """(state (s, e), logits)."""
    s = jax.nn.relu(run_dense(model['lower'], images))
    e = run_upper(model, s)
    return (s, e), run_dense(model['head'], e)


# --- The conversation ------------------------------------------------------------------------------

ENCODER = Encoder(hidden=64, message=32, dropout=0.0)
DECODERS = {
    name: Decoder(hidden=64, lower=widths[1], upper=widths[2], dropout=0.0) for name, widths in WIDTHS.items()
}


@jax.jit
def init_params(key):
    """What is trained: the student, and an encoder and a decoder for each model."""
    keys = iter(jax.random.split(key, 5))
    params = {'student': init_model(next(keys), WIDTHS['student'])}
    for name, widths in WIDTHS.items():
        params[f'{name}_encoder'] = ENCODER.init(
            next(keys), *(jnp.zeros((1, width)) for width in widths[1:3])
        )
        params[f'{name}_decoder'] = DECODERS[name].init(next(keys), jnp.zeros((1, ENCODER.message)))
    return params


def make_speaker(name, model, params):
    """A model and its communication modules with bound parameters; without dropout they need no key."""
    return losses.Speaker(
        upper=lambda s, key: run_upper(model, s),
        encode=lambda s, e, key: ENCODER.apply(params[f'{name}_encoder'], s, e),
        decode=lambda m, key: DECODERS[name].apply(params[f'{name}_decoder'], m),
    )


def compute_loss(params, teacher_model, images, labels):
    """The task's loss plus the weighted terms of TD; only the task's where there is no teacher."""
    student_state, logits = run_model(params['student'], images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    if teacher_model is None:
        return loss
    teacher_state, _ = run_model(teacher_model, images)
    student = make_speaker('student', params['student'], params)
    teacher = make_speaker('teacher', teacher_model, params)
    student_message = student.encode(*student_state, None)
    teacher_message = teacher.encode(*teacher_state, None)
    decoded_by_student = student.decode(teacher_message, None)
    decoded_by_teacher = teacher.decode(student_message, None)
    terms = {
        'message': losses.message_consistency(student_message, teacher_message),
        'state': losses.state_consistency(
            student_state, teacher_state, decoded_by_student, decoded_by_teacher
        ),
        'interact': losses.interaction(student, teacher, student_state, decoded_by_teacher[0], rounds=ROUNDS),
    }
    return loss + sum(WEIGHTS[name] * term.mean() for name, term in terms.items())


# --- Training --------------------------------------------------------------------------------------


@jax.jit
def update(params, optimizer_state, teacher_model, images, labels):
    """One step: -> (parameters, optimizer state, loss)."""
    loss, gradient = jax.value_and_grad(compute_loss)(params, teacher_model, images, labels)
    updates, optimizer_state = OPTIMIZER.update(gradient, optimizer_state)
    return optax.apply_updates(params, updates), optimizer_state, loss


def train(params, teacher_model, images, labels, seed):
    """Trains on random batches and returns the student."""
    rng, optimizer_state = np.random.default_rng(seed), OPTIMIZER.init(params)
    for _ in range(STEPS):
        rows = rng.choice(len(labels), BATCH_SIZE)
        batch = images[rows], labels[rows]
        params, optimizer_state, _ = update(params, optimizer_state, teacher_model, *batch)
    return params['student']


def main():
    images, digits = sklearn.datasets.load_digits(return_X_y=True)
    images, test_images, digits, test_digits = sklearn.model_selection.train_test_split(
        np.float32(images / 16), digits, test_size=0.3, random_state=0, stratify=digits
    )
    params = {'student': init_model(jax.random.key(0), WIDTHS['teacher'])}
    trained_teacher = train(params, None, images[digits < 5], digits[digits < 5], seed=0)

    test_images, test_labels = test_images[test_digits >= 5], test_digits[test_digits >= 5] - 5
    for name, teacher_model in (('alone', None), ('with the teacher', trained_teacher)):
        accuracies = []
        for seed in range(STUDENTS):
            order = np.random.default_rng(seed).permutation(len(digits))
            rows = np.concatenate([order[digits[order] == c][:IMAGES_PER_CLASS] for c in range(5, 10)])
            student = train(
                init_params(jax.random.key(seed)), teacher_model, images[rows], digits[rows] - 5, seed
            )
            _, logits = run_model(student, test_images)
            accuracies.append(np.mean(np.argmax(logits, -1) == test_labels))
        print(f'{STUDENTS} students {name}: mean test accuracy {np.mean(accuracies):.3f}')


if __name__ == '__main__':
    main()
