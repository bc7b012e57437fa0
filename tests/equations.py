"""The losses in NumPy, in float64, written from the equations of their papers."""

import itertools

import numpy as np


def join(state):
    """A state's arrays, flattened and joined: [batch, features]."""
    return np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in state], -1)


def mean_square(a, b):
    """The mean squared difference of two states, [batch]."""
    return np.mean((join(a) - join(b)) ** 2, axis=-1)


def softmax(y, temperature):
    """Class probabilities, [batch, classes] or [classes]."""
    p = np.exp(np.asarray(y, np.float64) / temperature)
    return p / p.sum(-1, keepdims=True)


def kl(y_g, y_h, temperature):
    """T^2 KL(p_h || p_g), [batch]."""
    p_g, p_h = softmax(y_g, temperature), softmax(y_h, temperature)
    return temperature**2 * (p_h * np.log(p_h / p_g)).sum(-1)


def dkd(y_g, y_h, labels, temperature):
    """(target, others) of Zhao et al. 2022, equations 3 to 7, example by example."""
    target, others = [], []
    for of_g, of_h, label in zip(y_g, y_h, labels, strict=True):
        p_g, p_h = softmax(of_g, temperature), softmax(of_h, temperature)
        b_g, b_h = (np.array([p[label], 1 - p[label]]) for p in (p_g, p_h))
        q_g, q_h = (np.delete(p, label) / (1 - p[label]) for p in (p_g, p_h))
        target.append(temperature**2 * np.sum(b_h * np.log(b_h / b_g)))
        others.append(temperature**2 * np.sum(q_h * np.log(q_h / q_g)))
    return target, others


def dist(y_g, y_h, temperature):
    """(inter, intra) of Huang et al. 2022."""
    p_g, p_h = (softmax(y, temperature) for y in (y_g, y_h))

    def correlate(g, h):
        """With a hundredth of the mean as the least standard deviation, by the sum of both squares."""
        stds = [np.sqrt(x.var() + 1e-4 * x.mean() ** 2) for x in (g, h)]
        return np.cov(g, h, bias=True)[0, 1] / stds[0] / stds[1]

    inter = [1 - correlate(g, h) for g, h in zip(p_g, p_h, strict=True)]
    intra = np.mean([1 - correlate(g, h) for g, h in zip(p_g.T, p_h.T, strict=True)])
    return temperature**2 * np.array(inter), np.full(len(p_g), temperature**2 * intra)


def relational(x_g, x_h):
    """(distance, angle) of Park et al. 2019, pair by pair and triple by triple."""
    count = len(x_g)
    distance, angle = np.zeros(count), np.zeros(count)

    def huber(a, b):
        return (a - b) ** 2 / 2 if abs(a - b) <= 1 else abs(a - b) - 1 / 2

    def cosine(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    def distances(x):
        lengths = {(i, j): np.linalg.norm(x[i] - x[j]) for i, j in itertools.permutations(range(count), 2)}
        mean = np.mean(list(lengths.values()))
        return {pair: length / mean for pair, length in lengths.items()}

    of_g, of_h = map(distances, (x_g, x_h))
    for i, j in of_g:
        distance[i] += huber(of_g[i, j], of_h[i, j]) / (count - 1)
    for i, j, k in itertools.permutations(range(count), 3):
        angle[j] += huber(*(cosine(x, i, j, k) for x in (x_g, x_h))) / ((count - 1) * (count - 2))
    return distance, angle


def contrastive(z_g, z_h, temperature):
    """InfoNCE in both directions, [batch]."""
    z_g, z_h = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (z_g, z_h))
    similarity = np.exp(z_g @ z_h.T / temperature)
    own = np.diagonal(similarity)
    return -(np.log(own / similarity.sum(1)) + np.log(own / similarity.sum(0))) / 2


def srd(projected, e_h, alpha):
    """LogSum of Miles and Mikolajczyk 2024, [batch]."""
    g, h = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-4) for x in (projected, e_h))
    return np.full(len(e_h), np.log(np.sum(np.abs(g - h) ** alpha)))
