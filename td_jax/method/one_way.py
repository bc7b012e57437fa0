"""One-way methods that compare states: the student listens, and nobody answers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from td_jax.method import communication, logits
from td_jax.method.shared import (
    decode_with,
    decoder_of,
    encode_with,
    encoder_of,
    laid_out,
    layout_of_message,
    one_cell,
    split,
)
from td_jax.models import base
from td_jax.randomness import fold_name


def representations(student, teacher):
    """What the heads read of both Participants, in float32: [batch, width] each."""
    return tuple(base.read_by_head(each.activations.upper).astype(jnp.float32) for each in (student, teacher))


# --- FD, FitNet, Hybrid ----------------------------------------------------------------------------


def init_fd(key, student, teacher, config, num_labels):
    """Encoders of both models."""
    encoder = encoder_of(config)
    return {
        name: encoder.init(fold_name(key, name), *map(one_cell, side[:2]))['params']
        for name, side in (('student_encoder', student), ('teacher_encoder', teacher))
    }


def messages(params, student, teacher, config, key):
    """What the encoders of both Participants make of their states, (m_g, m_h)."""
    layout = layout_of_message(student, teacher, config)
    return tuple(
        encode_with(params[f'{name}_encoder'], side, layout, config)(*side.activations[:2], side_key)
        for name, side, side_key in zip(
            ('student', 'teacher'), (student, teacher), split(key, 2), strict=True
        )
    )


def fd_terms(params, student, teacher, labels, config, key):
    """Feature distillation (Heo et al. 2019): d(E_g(s_g, e_g), E_h(s_h, e_h))."""
    student_message, teacher_message = messages(params, student, teacher, config, key)
    return {'feature': communication.distance((student_message,), (teacher_message,))}


def init_fitnet(key, student, teacher, config, num_labels):
    """The student's decoder, which reads the teacher's states themselves."""
    decoder = decoder_of(config, student)
    own_key = fold_name(key, 'student_decoder')
    return {'student_decoder': decoder.init(own_key, *map(one_cell, teacher[:2]))['params']}


def fitnet_terms(params, student, teacher, labels, config, key):
    """FitNet (Romero et al. 2014): d({s_g; e_g}, D_g({s_h; e_h}))."""
    layout = layout_of_message(student, teacher, config)
    decode = decode_with(params['student_decoder'], student, layout, config)
    heard = laid_out(teacher, *teacher.activations[:2], layout)
    return {'state': communication.distance(student.activations[:2], decode(*heard, key))}


def init_hybrid(key, student, teacher, config, num_labels):
    """What both LD and FD learn."""
    return {
        **logits.init_bridge(key, student, teacher, config, num_labels),
        **init_fd(key, student, teacher, config, num_labels),
    }


def hybrid_terms(params, student, teacher, labels, config, key):
    """Hybrid (Zhu and Wang 2021): LD and FD together."""
    weights = config.hybrid.weights
    terms = {}
    if weights.logits:
        terms |= logits.ld_terms(params, student, teacher, labels, config, key)
    if weights.feature:
        terms |= fd_terms(params, student, teacher, labels, config, key)
    return terms


# --- Relational knowledge distillation -------------------------------------------------------------

# Examples whose squared distance is less than this share of their squared lengths, seen from the middle of
# the batch, are in the same place: what is left of the difference is rounding.
SAME_PLACE = 1e-6


def relations(x):
    """How the examples of a batch lie to each other.

    Args:
      x: [batch, width], float32.

    Returns:
      (their inner products around their mean, [batch, batch]; their distances, [batch, batch], 0 where two
      are in the same place)
    """
    x = x - x.mean(axis=0, keepdims=True)
    products = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
    lengths = jnp.diagonal(products)
    both = lengths[:, None] + lengths[None, :]
    square = both - 2.0 * products
    # What is not finite stays so.
    apart = ~(square <= SAME_PLACE * both) & ~jnp.eye(len(x), dtype=bool)
    # The root has no gradient at 0.
    return products, jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


def rkd_distances(student_distances, teacher_distances):
    """Mean over the other examples of Huber(|x_i - x_j| / mean of those of the student, of the teacher).

    [batch, batch] twice -> [batch]. A mean is over all pairs of two examples.
    """
    count = len(student_distances)

    def normalised(distances):
        mean = distances.sum() / (count * (count - 1))
        # All in one place have nothing to be measured by.
        return distances / jnp.where(mean > 0, mean, 1.0)

    difference = optax.losses.huber_loss(normalised(student_distances), normalised(teacher_distances))
    return difference.sum(axis=1) / (count - 1)


def rkd_angles(of_student, of_teacher):
    """Mean over two others of Huber(cosine of the angle that they make at an example, the teacher's).

    Takes what `relations` gives of both; -> [batch]. One example after the other, so that no array has a
    number for every three of the batch; what the gradient needs is computed again.
    """
    count = len(of_student[0])

    def cosines(products, at_vertex):
        # (x_i - x_j) (x_k - x_j) of vertex j.
        row, distances, own = at_vertex
        inner = products - row[:, None] - row[None, :] + own
        lengths = distances[:, None] * distances[None, :]
        return jnp.where(lengths != 0, inner / jnp.where(lengths != 0, lengths, 1.0), 0.0)

    @jax.checkpoint
    def at(vertex):
        difference = optax.losses.huber_loss(
            *(
                cosines(products, at_vertex)
                for (products, _), at_vertex in zip((of_student, of_teacher), vertex, strict=True)
            )
        )
        # With the vertex itself there is no angle, and its own is 0 in both; nor is there one of an example
        # with itself.
        others = ~jnp.eye(count, dtype=bool)
        return jnp.sum(difference * others) / ((count - 1) * (count - 2))

    # What belongs to a vertex comes from the scan: taken by its index, of a batch that is cut over devices
    # and under vmap, it had a wrong gradient.
    vertices = tuple(
        (products, distances, jnp.diagonal(products)) for products, distances in (of_student, of_teacher)
    )
    return jax.lax.map(at, vertices)


def rkd_terms(params, student, teacher, labels, config, key):
    """Relational knowledge distillation (Park et al. 2019), on what the heads read.

    'distance': mean over i != j of Huber(|x_i - x_j| / mean distance), 'angle': mean over distinct i, j, k of
    Huber(cos of the angle at j between i and k), each of the student against that of the teacher, with
    Huber's threshold 1. A term of an example is the part of the mean that has it first, or at the vertex.
    Learns nothing beside the student; any two widths can be related.
    """
    of_student, of_teacher = map(relations, representations(student, teacher))
    terms, weights = {}, config.rkd.weights
    if weights.distance:
        terms['distance'] = rkd_distances(of_student[1], of_teacher[1])
    if weights.angle:
        terms['angle'] = rkd_angles(of_student, of_teacher)
    return terms


# --- Contrastive representation distillation -------------------------------------------------------


# Added to the squared length that a projection is divided by: one of length 0 has a finite gradient.
CRD_EPSILON = 1e-6


def init_crd(key, student, teacher, config, num_labels):
    """A linear projection to a message of what the head of each model reads."""
    project = nn.Dense(config.communication.message)
    return {
        name: project.init(fold_name(key, name), base.read_by_head(side.upper))['params']
        for name, side in (('student_projection', student), ('teacher_projection', teacher))
    }


def crd_terms(params, student, teacher, labels, config, key):
    """Contrastive representation distillation (Tian et al. 2020), with the batch as negatives.

    With z the projections at unit length and T the temperature, a term of example i is

        -(log softmax_j(z_g,i z_h,j / T) at j = i + log softmax_j(z_h,i z_g,j / T) at j = i) / 2

    The paper contrasts an example with thousands of others out of a memory bank, which holds projections of
    earlier steps, by noise-contrastive estimation, and for classification takes them from other classes. Here
    the others are those of the batch, as they are now, whatever their labels, and the loss is InfoNCE:
    nothing is kept from step to step, and an example has batch_size - 1 negatives.
    """
    project = nn.Dense(config.communication.message)
    z_g, z_h = (
        project.apply({'params': params[f'{side}_projection']}, x)
        for side, x in zip(('student', 'teacher'), representations(student, teacher), strict=True)
    )
    z_g, z_h = (z / jnp.sqrt(jnp.square(z).sum(axis=-1, keepdims=True) + CRD_EPSILON) for z in (z_g, z_h))
    similarity = jnp.matmul(z_g, z_h.T, precision=jax.lax.Precision.HIGHEST) / config.crd.temperature
    log_p = jax.nn.log_softmax(similarity, axis=1) + jax.nn.log_softmax(similarity, axis=0)
    return {'contrast': -jnp.diagonal(log_p) / 2}


# --- The role of the projector ---------------------------------------------------------------------

# Added to the variances of features, as the paper's own code does, and to the logarithm's argument.
SRD_VARIANCE_EPSILON, SRD_EPSILON = 1e-4, 1e-12


def init_srd(key, student, teacher, config, num_labels):
    """A linear projector from what the student's head reads to the width of what the teacher's reads."""
    projector = nn.Dense(base.read_by_head(teacher.upper).shape[-1])
    own_key = fold_name(key, 'projector')
    return {'projector': projector.init(own_key, base.read_by_head(student.upper))['params']}


def srd_terms(params, student, teacher, labels, config, key):
    """The projector and LogSum loss of Miles and Mikolajczyk (AAAI 2024, arXiv 2303.11098).

        L = log sum over examples and features of |BN(P e_g) - BN(e_h)|^alpha

    P is linear and learned, BN takes from each feature its mean over the batch and divides by its standard
    deviation there, has no scale and bias of its own and keeps no statistics: nothing is evaluated with it.
    L is one number for the batch, and so the same for every example. It may be negative. Where the classes
    are the same the paper also uses the teacher's predictions, which is LD and is left out here.
    """
    e_g, e_h = representations(student, teacher)
    projected = nn.Dense(e_h.shape[-1]).apply({'params': params['projector']}, e_g)

    def normalised(x):
        variance = x.var(axis=0, keepdims=True)
        return (x - x.mean(axis=0, keepdims=True)) * jax.lax.rsqrt(variance + SRD_VARIANCE_EPSILON)

    difference = jnp.abs(normalised(projected) - normalised(e_h))
    total = jnp.log(jnp.sum(difference**config.srd.alpha) + SRD_EPSILON)
    return {'projection': jnp.full(len(e_g), total)}
