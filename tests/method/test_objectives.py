"""Every method's terms against NumPy, written from the paper's equations."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from td_jax import losses
from td_jax.configs import common
from td_jax.errors import UserError
from td_jax.method import objectives, shared
from td_jax.models import base
from tests import equations

BATCH, LOWER, UPPER, CLASSES = 3, 5, 2, 4
TEACHER_LOWER, TEACHER_UPPER = 7, 3
LABELS = np.array([3, 0, 2])


# The states of two vectors.
VECTORS = ((), (), 0), ((), (), 0)


def pool(s, upper):
    """A feature map of half the side, where the higher state is one."""
    if s.shape[1:-1] == upper:
        return s
    rows, columns = upper
    return s.reshape(len(s), rows, 2, columns, 2, -1).mean((2, 4))


# The scales of the parts of states, of the student (g) and the teacher (h).
NO_SCALES = {'g': (1.0, 1.0), 'h': (1.0, 1.0)}
SCALES = {'g': (0.2, 3.0), 'h': (0.06, 1.3)}


def make_case(method, shapes=VECTORS, scales=None, **changes):
    """Config, parameters and two participants with widths that are all different.

    `shapes` are those of the states of student and teacher between batch and width, lower and higher, and
    their registers.
    """
    config = common.get_config()
    config.method = method
    config.communication.hidden, config.communication.message = 13, 11
    config.update_from_flattened_dict({key.replace('__', '.'): v for key, v in changes.items()})
    keys = jax.random.split(jax.random.key(0), 9)

    def participant(keys, lower, upper, shapes):
        of_lower, of_upper, registers = shapes
        weight = jax.random.normal(keys[0], (lower, upper))
        activations = base.Activations(
            jax.random.normal(keys[1], (BATCH, *of_lower, lower)),
            jax.random.normal(keys[2], (BATCH, *of_upper, upper)),
            jax.random.normal(keys[3], (BATCH, CLASSES)),
        )
        run = shared.Participant(activations, lambda s, key: jnp.tanh(pool(s, of_upper) @ weight), registers)
        return run, lambda s: np.tanh(pool(s, of_upper) @ np.asarray(weight))

    student, upper_g = participant(keys[:4], LOWER, UPPER, shapes[0])
    teacher, upper_h = participant(keys[4:8], TEACHER_LOWER, TEACHER_UPPER, shapes[1])
    teacher = teacher._replace(probe_logits=jax.random.normal(jax.random.key(9), (BATCH, CLASSES)))
    if scales:
        student, teacher = (
            side._replace(scales=shared.Scales(*map(jnp.float32, scales[name])))
            for name, side in (('g', student), ('h', teacher))
        )
    objective = objectives.METHODS[method]
    params = objective.init(keys[8], student.activations, teacher.activations, config, CLASSES)
    terms = objective.terms(params, student, teacher, LABELS, config, None)
    return types.SimpleNamespace(
        config=config,
        params=jax.tree.map(np.asarray, params),
        g=jax.tree.map(np.asarray, student.activations),
        h=jax.tree.map(np.asarray, teacher.activations),
        probe_logits=np.asarray(teacher.probe_logits),
        upper_g=upper_g,
        upper_h=upper_h,
        shapes=dict(zip('gh', shapes, strict=True)),
        scales=scales or NO_SCALES,
        terms=terms,
    )


# --- The equations in NumPy ------------------------------------------------------------------------


def apply_dense(params, x):
    return x @ params['kernel'] + params['bias']


def apply_norm_dense(params, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    kernel = np.concatenate([params[k] for k in sorted(params) if k.startswith('kernel')])
    return np.maximum(x @ kernel + params['bias'], 0)


def make_stretch_weights(count, new):
    """[new, count]: triangular weights around each new cell, two old or two new cells wide."""
    centres = (np.arange(new)[:, None] + 0.5) * count / new
    weights = np.maximum(0, 1 - np.abs(np.arange(count)[None] + 0.5 - centres) / max(1, count / new))
    return weights / weights.sum(1, keepdims=True)


def split_pieces(x, registers):
    """(class token or None, registers, grid [batch, rows, columns, width]) of a state."""
    if x.ndim == 2:
        return None, [], x[:, None, None]
    if x.ndim == 4:
        return None, [], x
    first, *others = np.moveaxis(x[:, : 1 + registers], 1, 0)
    side = round((x.shape[1] - 1 - registers) ** 0.5)
    return first, others, x[:, 1 + registers :].reshape(BATCH, side, side, -1)


def align_pieces(pieces, is_token, registers, side):
    """The pieces in another layout: with a class token or not, so many registers, a grid of a side."""
    token, others, grid = pieces
    mean = grid.mean((1, 2))
    resized = np.einsum('ri,cj,bijw->brcw', *(make_stretch_weights(n, side) for n in grid.shape[1:3]), grid)
    if is_token:
        class_token = mean if token is None else token
        return class_token, others if len(others) == registers else [class_token] * registers, resized
    return None, [], resized if token is None else (resized + token[:, None, None]) / 2


def join_pieces(pieces, rank):
    """Joins the pieces of a state into an array."""
    token, registers, grid = pieces
    if rank == 2:
        return grid[:, 0, 0]
    if rank == 4:
        return grid
    cells = grid.reshape(BATCH, -1, grid.shape[-1])
    return np.concatenate([np.stack([token, *registers], 1), cells], 1)


def describe_message(case):
    """(whether it has a class token, registers, side, rank of its array) of the messages of a case."""
    sides = {name: split_pieces(getattr(case, name).lower, case.shapes[name][2]) for name in 'gh'}
    grid_name = case.config.communication.grid
    side = (
        int(grid_name)
        if grid_name.isdecimal()
        else sides[{'student': 'g', 'teacher': 'h'}[grid_name]][2].shape[1]
    )
    is_token = any(token is not None for token, _, _ in sides.values())
    registers = {len(others) for _, others, _ in sides.values()}
    are_vectors = case.g.lower.ndim == case.g.upper.ndim == case.h.lower.ndim == case.h.upper.ndim == 2
    rank = 2 if are_vectors else 3 if is_token else 4
    return is_token, registers.pop() if len(registers) == 1 else 0, side, rank


def align_to_grid(case, side, *states):
    """Joins the states of a side on the grid of a message: [batch, ..., width]."""
    *kind, rank = describe_message(case)
    parts = (
        join_pieces(align_pieces(split_pieces(x, case.shapes[side][2]), *kind), rank)
        for x in divide_by_scales(case, side, states)
    )
    return np.concatenate(list(parts), -1)


def divide_by_scales(case, side, state):
    return [x / scale for x, scale in zip(state, case.scales[side], strict=True)]


def encode(case, side, s, e):
    params = case.params[{'g': 'student_encoder', 'h': 'teacher_encoder'}[side]]
    return apply_dense(params['message'], apply_norm_dense(params['hidden'], align_to_grid(case, side, s, e)))


def decode(case, side, m):
    params = case.params[{'g': 'student_decoder', 'h': 'teacher_decoder'}[side]]
    _, registers, _, _ = describe_message(case)
    x, own = apply_norm_dense(params['hidden'], m), getattr(case, side)
    arrays = []
    for name, scale in zip(('lower', 'upper'), case.scales[side], strict=True):
        like_own = split_pieces(getattr(own, name), case.shapes[side][2])
        kind = like_own[0] is not None, len(like_own[1]), like_own[2].shape[1]
        decoded = split_pieces(scale * apply_dense(params[name], x), registers)
        arrays.append(join_pieces(align_pieces(decoded, *kind), getattr(own, name).ndim))
    return arrays


def numpy_supervised(case):
    return {}


def numpy_ld(case):
    return {'logits': np.mean((case.g.logits - case.h.logits) ** 2, -1)}


def numpy_fd(case):
    m_g = encode(case, 'g', case.g.lower, case.g.upper)
    m_h = encode(case, 'h', case.h.lower, case.h.upper)
    return {'feature': equations.mean_square([m_g], [m_h])}


def numpy_fitnet(case):
    teacher_state = align_to_grid(case, 'h', case.h.lower, case.h.upper)
    states = [case.g.lower, case.g.upper], decode(case, 'g', teacher_state)
    return {'state': equations.mean_square(*(divide_by_scales(case, 'g', state) for state in states))}


def numpy_hybrid(case):
    return {**numpy_ld(case), **numpy_fd(case)}


def read_by_heads(case):
    def read(e):
        return {2: lambda: e, 3: lambda: e[:, 0], 4: lambda: e.mean((1, 2))}[e.ndim]()

    return read(case.g.upper.astype(np.float64)), read(case.h.upper.astype(np.float64))


def numpy_rkd(case):
    return dict(zip(('distance', 'angle'), equations.relational(*read_by_heads(case)), strict=True))


def numpy_crd(case):
    sides = zip(('student', 'teacher'), read_by_heads(case), strict=True)
    projections = [apply_dense(case.params[f'{side}_projection'], x) for side, x in sides]
    return {'contrast': equations.contrastive(*projections, case.config.crd.temperature)}


def numpy_srd(case):
    e_g, e_h = read_by_heads(case)
    return {
        'projection': equations.srd(apply_dense(case.params['projector'], e_g), e_h, case.config.srd.alpha)
    }


def numpy_dkd(case):
    values = equations.dkd(case.g.logits, case.h.logits, LABELS, case.config.dkd.temperature)
    return dict(zip(('target', 'others'), values, strict=True))


def numpy_dist(case):
    values = equations.dist(case.g.logits, case.h.logits, case.config.dist.temperature)
    return dict(zip(('inter', 'intra'), values, strict=True))


def numpy_td(case):
    def measure_distance(target, prediction, side=None):
        """The distance, divided by the target's variance if configured; with a side, of scaled states."""
        if side:
            target, prediction = (divide_by_scales(case, side, state) for state in (target, prediction))
        value = equations.mean_square(target, prediction)
        if case.config.td.scale == 'none':
            return value
        return value / (equations.join(target).var(axis=0).mean() + 1e-6)

    (s_g, e_g, _), (s_h, e_h, _) = case.g, case.h
    m_g, m_h = encode(case, 'g', s_g, e_g), encode(case, 'h', s_h, e_h)
    terms = {
        'message': measure_distance([m_h], [m_g]),
        'state': measure_distance([s_g, e_g], decode(case, 'g', m_h), 'g')
        + measure_distance([s_h, e_h], decode(case, 'h', m_g), 'h'),
    }
    s, e, m, interact = s_g, e_g, m_g, 0
    for _ in range(case.config.td.rounds):
        decoded, _ = decode(case, 'h', m)
        answer = encode(case, 'h', decoded, case.upper_h(decoded))
        s_new, e_new = decode(case, 'g', answer)
        target = [s, e] if case.config.td.reference == 'running' else [s_g, e_g]
        interact = interact + measure_distance(target, [s_new, e_new], 'g')
        s, e = s_new, case.upper_g(s_new)
        m = encode(case, 'g', s, e)
    return {**terms, 'interact': interact} if case.config.td.rounds else terms


REFERENCES = {
    'supervised': numpy_supervised,
    'ld': numpy_ld,
    'fd': numpy_fd,
    'fitnet': numpy_fitnet,
    'hybrid': numpy_hybrid,
    'td': numpy_td,
    'rkd': numpy_rkd,
    'crd': numpy_crd,
    'srd': numpy_srd,
    'dkd': numpy_dkd,
    'dist': numpy_dist,
}


def assert_terms(case, expected):
    assert set(case.terms) == set(expected)
    for name, value in expected.items():
        assert case.terms[name].shape == (BATCH,)
        np.testing.assert_allclose(case.terms[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize('method', objectives.METHODS)
def test_terms_are_those_of_the_equations(method):
    assert method in REFERENCES, f'{method} has no reference in NumPy'
    case = make_case(method)
    assert_terms(case, REFERENCES[method](case))


@pytest.mark.parametrize(
    ('method', 'changes'),
    [
        ('fd', {}),
        ('fitnet', {}),
        ('td', {'td__rounds': 3}),
        ('td', {'td__rounds': 2, 'td__reference': 'original', 'td__scale': 'variance'}),
    ],
)
@pytest.mark.parametrize('shapes', [VECTORS, (((4, 4), (2, 2), 0), ((10,), (10,), 0))])
def test_parts_of_states_are_read_and_compared_over_their_scales(method, changes, shapes):
    case = make_case(method, shapes, SCALES, **changes)
    assert_terms(case, REFERENCES[method](case))
    unscaled_case = make_case(method, shapes, **changes)
    assert all(np.all(np.abs(unscaled_case.terms[name] - case.terms[name]) > 1e-3) for name in case.terms)


# States of a vector, of tokens with a grid of 2, of 3 and of 3 with registers, and of feature maps.
VECTOR, COARSE, FINE = ((), (), 0), ((5,), (5,), 0), ((10,), (10,), 0)
REGISTERS, MAPS = ((12,), (12,), 2), ((4, 4), (2, 2), 0)
UNLIKE = {
    'coarse and fine tokens': (COARSE, FINE),
    'fine and coarse tokens': (FINE, COARSE),
    'tokens and maps': (COARSE, MAPS),
    'maps and tokens': (MAPS, FINE),
    'maps and maps': (MAPS, MAPS),
    'maps and vectors': (MAPS, VECTOR),
    'vectors and tokens': (VECTOR, FINE),
    'tokens and registers': (COARSE, REGISTERS),
    'registers and maps': (REGISTERS, MAPS),
    'registers and registers': (((7,), (7,), 2), REGISTERS),
}
QUICK = 'maps and tokens', 'vectors and tokens', 'tokens and registers'
READ_STATES = [
    name for name, method in objectives.METHODS.items() if method.reads.keys() - {'bridged_logits'}
]


@pytest.mark.parametrize(
    ('method', 'pair'),
    [('td', pair) if pair in QUICK else pytest.param('td', pair, marks=pytest.mark.long) for pair in UNLIKE]
    + [(method, 'maps and tokens') for method in READ_STATES if method != 'td']
    + [('fitnet', 'tokens and registers')],
)
def test_states_of_unlike_shapes_are_compared_on_one_grid(method, pair):
    case = make_case(method, UNLIKE[pair], td__rounds=2)
    assert_terms(case, REFERENCES[method](case))


@pytest.mark.parametrize(
    'grid', ['3', *(pytest.param(grid, marks=pytest.mark.long) for grid in ('teacher', '1'))]
)
def test_a_message_has_the_grid_that_is_asked_for(grid):
    case = make_case('td', UNLIKE['maps and tokens'], communication__grid=grid)
    assert_terms(case, numpy_td(case))


@pytest.mark.parametrize('rounds', [0, 1, 3])
@pytest.mark.parametrize('reference', ['running', 'original'])
def test_td_terms_for_any_number_of_rounds(rounds, reference):
    case = make_case('td', td__rounds=rounds, td__reference=reference)
    assert_terms(case, numpy_td(case))


@pytest.mark.parametrize('rounds', [1, 3])
@pytest.mark.parametrize('reference', ['running', 'original'])
def test_scaled_distances_are_over_the_variance_of_their_targets(rounds, reference):
    case = make_case('td', td__rounds=rounds, td__reference=reference, td__scale='variance')
    assert_terms(case, numpy_td(case))
    plain_case = make_case('td', td__rounds=rounds, td__reference=reference)
    assert not np.allclose(plain_case.terms['interact'], case.terms['interact'], rtol=0.1)


@pytest.mark.parametrize(
    ('method', 'option', 'value'),
    [
        ('crd', 'temperature', 0.5),
        ('srd', 'alpha', 2.0),
        ('dkd', 'temperature', 1.0),
        ('dist', 'temperature', 4.0),
    ],
)
def test_an_option_of_a_method_is_that_of_its_equations(method, option, value):
    case = make_case(method, **{f'{method}__{option}': value})
    assert_terms(case, REFERENCES[method](case))


@pytest.mark.parametrize('method', ['dkd', 'dist'])
def test_predictions_are_compared_with_those_of_a_probe(method):
    """The terms are those of a teacher with the same labels and the predictions of the probe."""
    case = make_case(method, teacher__labels='probe')
    case.h = case.h._replace(logits=case.probe_logits)
    assert_terms(case, REFERENCES[method](case))


@pytest.mark.parametrize(
    ('method', 'term'),
    [
        (method, term)
        for method in ('td', 'hybrid', 'rkd', 'dkd', 'dist')
        for term in common.get_config()[method].weights
        if (method, term) != ('td', 'logits')
    ],
)
def test_a_weight_of_zero_switches_a_term_off(method, term):
    case = make_case(method, **{f'{method}__weights__{term}': 0.0})
    expected = REFERENCES[method](case)
    del expected[term]
    assert_terms(case, expected)


def test_td_takes_a_logits_term():
    case = make_case('td', td__weights__logits=0.5)
    assert_terms(case, {**numpy_td(case), **numpy_ld(case)})


# --- Label distillation ----------------------------------------------------------------------------


def test_kl_is_per_example_and_so_blind_to_duplicates():
    case = make_case('ld', logits__distance='kl', logits__temperature=2.0)
    twice = losses.label_kl(
        jnp.concatenate([case.g.logits] * 2), jnp.concatenate([case.h.logits] * 2), temperature=2.0
    )
    np.testing.assert_allclose(twice, np.concatenate([case.terms['logits']] * 2), rtol=1e-6)
    expected = equations.kl(case.g.logits, case.h.logits, 2.0)
    np.testing.assert_allclose(case.terms['logits'], expected, rtol=1e-5)


def cross_entropy(logits):
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_p[np.arange(BATCH), LABELS]


@pytest.mark.parametrize('distance', ['l2', 'kl'])
def test_a_probe_teaches_the_student_and_is_nothing_that_a_method_learns(distance):
    case = make_case('ld', teacher__labels='probe', logits__distance=distance)
    expected = np.mean((case.g.logits - case.probe_logits) ** 2, -1)
    if distance == 'kl':
        expected = equations.kl(case.g.logits, case.probe_logits, 1.0)
    assert_terms(case, {'logits': expected})
    assert case.params == {}


def test_auxiliary_head_predicts_the_teachers_labels():
    case = make_case('ld', teacher__labels='auxiliary')
    predicted = apply_dense(case.params['auxiliary'], case.g.upper)
    assert_terms(case, {'logits': np.mean((predicted - case.h.logits) ** 2, -1)})


def test_different_labels_are_refused_with_the_way_out():
    config = common.get_config()
    config.method = 'ld'
    with pytest.raises(UserError, match=r'5 labels \(0, 1, 2, \.{3}\).*2 \(7, 8\).*probe or auxiliary'):
        objectives.check_labels(config, ('7', '8'), tuple('01234'))
    objectives.check_labels(config, ('7', '8'), ('7', '8'))
    config.method = 'td'
    objectives.check_labels(config, ('7', '8'), tuple('01234'))


# --- The parts of a teacher that a method reads ----------------------------------------------------


def compute_terms_without(method, parts, **changes):
    """(config, {term: [batch]}) of a method with all weights positive, and NaN in some parts of its teacher.

    The output of the teacher's upper layers counts as its states.
    """
    config = common.get_config()
    config.method = method
    config.td.weights.logits = 1.0
    config.communication.hidden, config.communication.message = 13, 11
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    keys = jax.random.split(jax.random.key(0), 7)

    def activations(keys, lower, upper):
        shapes = (BATCH, lower), (BATCH, upper), (BATCH, CLASSES)
        return base.Activations(*map(jax.random.normal, keys, shapes))

    g, h = activations(keys[:3], LOWER, UPPER), activations(keys[3:6], TEACHER_LOWER, TEACHER_UPPER)
    objective = objectives.METHODS[method]
    params = objective.init(keys[6], g, h, config, CLASSES)
    h = h._replace(**{part: jnp.full_like(getattr(h, part), jnp.nan) for part in parts})
    unknown = jnp.nan if 'upper' in parts else 1.0
    student = shared.Participant(g, lambda s, key: s[:, :UPPER])
    teacher = shared.Participant(h, lambda s, key: s[:, :TEACHER_UPPER] * unknown, probe_logits=g.logits + 1)
    return config, objective.terms(params, student, teacher, LABELS, config, None)


PARTS = {
    'states': ('lower', 'upper'),
    'representations': ('upper',),
    'logits': ('logits',),
    'bridged_logits': ('logits',),
}


@pytest.mark.parametrize('method', objectives.METHODS)
@pytest.mark.parametrize('part', ['states', 'logits'])
def test_a_method_reads_what_it_says(method, part):
    """NaN in a part of the teacher reaches the terms that read this part, and no others."""
    declared = {
        term
        for declared_part, terms in objectives.METHODS[method].reads.items()
        if set(PARTS[declared_part]) & set(PARTS[part])
        for term in terms
    }
    config, terms = compute_terms_without(method, PARTS[part])
    assert {name for name, value in terms.items() if np.isnan(value).all()} == declared
    assert set(terms) == objectives.weights_of(config).keys()


@pytest.mark.parametrize('method', [m for m, o in objectives.METHODS.items() if 'bridged_logits' in o.reads])
def test_bridged_logits_are_not_those_of_the_teacher(method):
    """A probe reads states alone, so bridged logits do not depend on the teacher's own labels."""
    _, terms = compute_terms_without(method, PARTS['logits'], teacher__labels='probe')
    assert not any(np.isnan(value).any() for value in terms.values())
    assert {*objectives.METHODS[method].reads['bridged_logits']} <= set(terms)


@pytest.mark.parametrize('method', [m for m, o in objectives.METHODS.items() if 'representations' in o.reads])
def test_a_representation_is_no_lower_state(method):
    _, terms = compute_terms_without(method, ('lower',))
    assert not any(np.isnan(value).any() for value in terms.values())


def cosine_terms(params, student, teacher, labels, config, key):
    """1 - cos(y_g, y_h), per example."""
    return {'angle': optax.losses.cosine_distance(student.activations.logits, teacher.activations.logits)}


@pytest.fixture
def cosine(monkeypatch):
    """A function (**changes) -> a config of a method that is added as the documentation says."""
    method = shared.Objective(shared.no_parameters, cosine_terms, {'logits': ('angle',)})
    monkeypatch.setitem(objectives.METHODS, 'cosine', method)

    def make(**changes):
        config = common.get_config()
        config.method = 'cosine'
        with config.unlocked():
            config.cosine = {'weights': {'angle': 1.0}}
        config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
        return config

    return make


@pytest.mark.parametrize('labels', ['shared', 'probe', 'auxiliary'])
def test_a_term_of_another_name_that_reads_logits_is_held_to_their_labels(cosine, labels):
    config, five = cosine(teacher__labels=labels), tuple('56789')
    objectives.check_labels(config, five, five)
    with pytest.raises(UserError, match=r'5 labels \(0, 1, 2, .* the term angle reads them as they are'):
        objectives.check_labels(config, five, tuple('01234'))
    with pytest.raises(UserError, match=r'no head to make any: set cosine\.weights\.angle to 0, or compare'):
        objectives.check_labels(config, five, ())
    objectives.check_labels(cosine(teacher__labels=labels, cosine__weights__angle=0.0), five, tuple('01234'))


# --- The task --------------------------------------------------------------------------------------


def test_task_losses():
    np.testing.assert_allclose(
        objectives.TASK_LOSSES['regression'](jnp.array([[1.0], [5.0]]), jnp.array([3.0, 4.0])), [4.0, 1.0]
    )
    logits = np.random.default_rng(0).normal(size=(BATCH, CLASSES))
    np.testing.assert_allclose(
        objectives.TASK_LOSSES['classification'](logits, LABELS), cross_entropy(logits), rtol=1e-6
    )
    with pytest.raises(ValueError, match='do not fit'):
        objectives.squared_error(jnp.zeros(4), jnp.zeros(4))
