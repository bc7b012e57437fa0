"""A model as the rest of td_jax sees it: three pure functions over one parameter tree.

    lower: inputs -> s    the lower hidden state
    upper: s      -> e    the higher hidden state, which the head reads
    head:  e      -> y    the prediction

A model is split because communication reads s and e, and runs `upper` alone on states that another model
suggested (arXiv 2310.03188, section 3.1).
"""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from td_jax.errors import UserError

# The parameters of every model's prediction layer, by name; what comes before depends on no labels.
HEADS = 'head_layer', 'output_layer'
# The part of a parameter tree that training must not change, such as the statistics of BatchNorm.
STATE = 'fixed_state'


class Activations(NamedTuple):
    """The hidden states and the prediction of one model; every array is batch-first."""

    lower: jax.Array  # s: [batch, ..., lower width], with the axes that Model describes
    upper: jax.Array  # e: [batch, ..., upper width]
    logits: jax.Array  # y: [batch, outputs]


class Model(NamedTuple):
    """Three functions and their initial parameters.

    With a key, a function applies dropout; with None it is deterministic.

        init(key, inputs) -> parameter tree
        lower(params, inputs, key) -> s
        upper(params, s, key) -> e
        head(params, e) -> y, [batch, outputs]

    `registers` is the number of tokens between the class token and the grid. `is_teacher_only` says that it
    cannot be trained, such as a model with BatchNorm.

    The rank of a state determines its kind, which may differ between the lower and the higher state:
    [batch, width] is a vector; [batch, tokens, width] a class token, the registers and a grid in row order;
    [batch, rows, columns, width] a feature map without a class token.
    """

    init: Callable[..., Any]
    lower: Callable[..., jax.Array]
    upper: Callable[..., jax.Array]
    head: Callable[..., jax.Array]
    registers: int = 0
    is_teacher_only: bool = False


def check_reads_images(name: str, vocabularies: dict[str, int]):
    """Refuses data with vocabularies, which are not images, for a model that reads images.

    Args:
      name: of the architecture.
      vocabularies: {input: rows}, as a builder gets them.

    Raises:
      UserError: there are some.
    """
    if vocabularies:
        raise UserError(f'model.name {name} reads images; the data set has {", ".join(vocabularies)}.')


def check_split_of_stages(split: int, num_stages: int):
    """Refuses a split beyond the last stage of a convolutional network.

    Raises:
      UserError: names the largest split.
    """
    if split > num_stages:
        raise UserError(f'model.split is {split}; with {num_stages} stages it is between 0 and {num_stages}.')


def from_module(module: nn.Module, registers: int = 0) -> Model:
    """Makes a Model from a Linen module with the methods `lower`, `upper` and `head`.

    The module's `lower` and `upper` take (x, deterministic), and its `__call__` runs all three. Collections
    other than `params` become STATE in the tree; such a model can only teach.
    """

    def init(key, inputs):
        variables = dict(module.init(key, inputs))
        params = variables.pop('params', {})
        return {**params, STATE: variables} if variables else params

    def variables_of(tree):
        params = {name: value for name, value in tree.items() if name != STATE}
        return {'params': params, **tree.get(STATE, {})}

    def apply(method):
        def run(params, x, key=None):
            rngs = {} if key is None else {'dropout': key}
            return module.apply(variables_of(params), x, key is None, method=method, rngs=rngs)

        return run

    def head(params, e):
        return module.apply(variables_of(params), e, method='head')

    return Model(init=init, lower=apply('lower'), upper=apply('upper'), head=head, registers=registers)


def from_nnx(module, lower: Callable, upper: Callable, head: Callable, registers: int = 0) -> Model:
    """Makes a Model from a Flax NNX module and three functions of it.

    Without a key the module is in evaluation mode, `module.eval()`; with one it is in training mode, and its
    random streams derive from the key.

    Args:
      module: an nnx.Module, whose values every `init` returns, whatever the key; or a function
        (rngs: nnx.Rngs) -> nnx.Module, with which `init` makes new ones from its key.
      lower: (module, inputs) -> s, where inputs are {name: array}.
      upper: (module, s) -> e.
      head: (module, e) -> y, [batch, outputs].
      registers: as of a Model.

    Returns:
      A Model. Variables other than nnx.Param, such as the statistics of nnx.BatchNorm, become STATE in its
      tree; such a model can only teach.

    Raises:
      UserError: a function makes a module with an array that is no nnx.Variable.
    """
    # Importing it takes a while.
    from flax import nnx

    def parts(module):
        """(graph, parameters, random streams, other variables)"""
        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    def make(key):
        return module if isinstance(module, nnx.Module) else module(nnx.Rngs(key))

    graphs = {}

    def trace_parts(is_training):
        instance = make(0)
        _refuse_bare_arrays(nnx, instance)
        copy = nnx.merge(*parts(instance))
        copy.train() if is_training else copy.eval()
        graphs[is_training], *others = parts(copy)
        return others

    # Split where its arrays still are some: a shape in the place of an array would count as an option.
    shapes, _ = (jax.eval_shape(lambda x=x: trace_parts(x)) for x in (False, True))
    structures = [jax.tree_util.tree_structure(part) for part in shapes]
    names = [[_name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(part)] for part in shapes]
    streams = jax.tree_util.tree_leaves(shapes[1])

    def init(key, inputs):
        _, params, _, state = parts(make(key))
        flat = dict(zip(names[0], jax.tree_util.tree_leaves(params), strict=True))
        values = jax.tree_util.tree_leaves(state)
        flat |= {f'{STATE}/{name}': value for name, value in zip(names[2], values, strict=True)}
        return flax.traverse_util.unflatten_dict(flat, sep='/')

    def bind(tree, key):
        flat = flax.traverse_util.flatten_dict(tree, sep='/')
        leaves = (
            [flat[name] for name in names[0]],
            [_stream(i, leaf, key) for i, leaf in enumerate(streams)],
            [flat[f'{STATE}/{name}'] for name in names[2]],
        )
        filled = [structure.unflatten(part) for structure, part in zip(structures, leaves, strict=True)]
        return nnx.merge(graphs[key is not None and not names[2]], *filled)

    return Model(
        init,
        lambda params, inputs, key=None: lower(bind(params, key), inputs),
        lambda params, s, key=None: upper(bind(params, key), s),
        lambda params, e: head(bind(params, None), e),
        registers,
        is_teacher_only=bool(names[2]),
    )


def _refuse_bare_arrays(nnx, module):
    """Refuses traced arrays outside of variables, which NNX takes for options of a module."""
    for _, part in nnx.iter_graph(module):
        for name, value in vars(part).items() if isinstance(part, nnx.Module) else ():
            if isinstance(value, jax.core.Tracer):
                raise UserError(
                    f'{type(part).__name__} has {name}, an array that is no variable: make it an '
                    'nnx.Variable, or give from_nnx the module itself.'
                )


def _name_of(path):
    """The name of a variable in a tree; its last part only says that it is a variable's value."""
    return jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')


def _stream(index, leaf, key):
    """A key of NNX's random streams, from the key of a step, or a counter at its start."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        own = jax.random.fold_in(jax.random.key(0) if key is None else key, index)
        return own if leaf.shape == () else jax.random.split(own, leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)


def from_keras(
    model, lower: str | Callable, upper: str | Callable, head: Callable | None = None, registers: int = 0
) -> Model:
    """Makes a Model from a Keras model on JAX, which teaches as it is.

    Images come as image_mean and image_std of teacher.dataset say, whatever the model was trained on: with a
    mean of 0 and a standard deviation of 1 / 255, for one, from 0 to 255, as EfficientNet of
    keras.applications takes them.

    Args:
      model: a keras.Model with weights; of a functional one, layers may be named below.
      lower: the layer whose output is s, by name; or inputs -> s, where inputs are {name: array}.
      upper: the layer whose output is e, by name; or s -> e.
      head: e -> y, [batch, outputs]; None is the rest of a functional model.
      registers: as of a Model.

    Returns:
      A Model that can only teach. Its tree has all weights of floating-point numbers by their paths, those
      that are not trainable in STATE. Layers that are named run in inference mode, so that there is no
      dropout and BatchNorm uses its moving statistics; functions have to pass `training=False` themselves.

    Raises:
      UserError: Keras does not run on JAX or has its channels first, a layer that is not there, one that does
        not cut the model in two, or a model without a head that ends in a softmax or in several outputs.
    """
    # Only those who bring such a model need it.
    import keras

    if keras.backend.backend() != 'jax' or keras.config.image_data_format() != 'channels_last':
        raise UserError(
            f'Keras runs on {keras.backend.backend()} with {keras.config.image_data_format()}; set '
            'KERAS_BACKEND=jax in the environment before it is imported, and channels_last.'
        )
    are_names = [isinstance(part, str) for part in (lower, upper)]
    if are_names[0] != are_names[1] or (head is None and not are_names[0]):
        raise UserError('from_keras takes the names of two layers, or three functions.')
    if are_names[0]:
        s, e = (_keras_output(model, name) for name in (lower, upper))
        if head is None:
            if len(model.outputs) != 1:
                raise UserError(f'{model.name} has {len(model.outputs)} outputs: name a head, which has one.')
            if _ends_in_softmax(keras, model):
                raise UserError(
                    f'{model.name} ends in a softmax, but predictions are compared before it: make it with '
                    'classifier_activation=None, or name a head.'
                )
            head = _keras_part(keras, model, e, model.outputs[0])
        upper = _keras_part(keras, model, s, e)
        # A model of one input is given it by itself.
        is_single = len(model.inputs) == 1
        first = _keras_part(keras, model, model.inputs[0] if is_single else model.input, s)

        def lower(inputs):
            return first(next(iter(inputs.values())) if is_single and len(inputs) == 1 else inputs)

    trained = {id(variable) for variable in model.trainable_variables}
    variables = {
        variable.path if id(variable) in trained else f'{STATE}/{variable.path}': variable
        for variable in model.variables
        # Others are of random streams.
        if jnp.issubdtype(variable.dtype, jnp.floating)
    }

    def init(key, inputs):
        flat = {name: jnp.asarray(variable.value) for name, variable in variables.items()}
        return flax.traverse_util.unflatten_dict(flat, sep='/')

    def bind(function):
        def run(params, x, key=None):
            flat = flax.traverse_util.flatten_dict(params, sep='/')
            mapping = [(variable, flat[name]) for name, variable in variables.items()]
            # Keras adds a bias as NumPy does, whatever JAX is told to make of that.
            with keras.StatelessScope(state_mapping=mapping), jax.numpy_rank_promotion('allow'):
                return function(x)

        return run

    return Model(init, bind(lower), bind(upper), bind(head), registers, is_teacher_only=True)


def _keras_output(model, name):
    """The tensor that a layer makes, by its name."""
    layers = {layer.name: layer for layer in model.layers}
    if name not in layers:
        nearest = difflib.get_close_matches(name, layers, n=3)
        hint = f' Did you mean {" or ".join(nearest)}?' if nearest else ''
        raise UserError(f'{model.name} has no layer {name}.{hint}')
    try:
        return layers[name].output
    except AttributeError as error:
        raise UserError(
            f'{model.name} cannot be cut at the layer {name}, which is called never or more than once in it: '
            'take a functional model with an input, or give three functions.'
        ) from error


def _ends_in_softmax(keras, model):
    """Whether a functional model ends in a softmax, of a layer, an operation or a model in it."""
    last = model
    while isinstance(last, keras.Sequential) or hasattr(last, 'operations'):
        last = (last.layers if isinstance(last, keras.Sequential) else last.operations)[-1]
    activation = getattr(getattr(last, 'activation', None), '__name__', '')
    return activation == 'softmax' or type(last).__name__ == 'Softmax'


def _keras_part(keras, model, inputs, outputs):
    """The part of a functional model between two of its tensors, in inference mode."""
    try:
        part = keras.Model(inputs, outputs)
    except ValueError as error:
        raise UserError(
            f'{model.name} cannot be cut at these layers: a connection goes past one of them. Name layers '
            'that all connections go through, such as the end of a block.'
        ) from error
    return lambda x: part(x, training=False)


def activations(model: Model, params, inputs, key=None) -> Activations:
    """Runs all three parts on `inputs`; with a key, `lower` and `upper` each have their own dropout."""
    lower_key, upper_key = (None, None) if key is None else jax.random.split(key)
    s = model.lower(params, inputs, lower_key)
    e = model.upper(params, s, upper_key)
    return Activations(s, e, model.head(params, e))


def is_trainable(model: Model, shapes) -> bool:
    """Whether a model may be trained.

    Args:
      model: any.
      shapes: a tree like its parameters.
    """
    return not model.is_teacher_only and STATE not in shapes


def read_by_head(e: jax.Array) -> jax.Array:
    """The part of a higher hidden state that a prediction reads, [batch, width].

    It is the first token, or the mean of a feature map in float32. (A ViT's own head may read more,
    td_jax.models.vit.POOLINGS.)
    """
    if e.ndim == 4:
        return e.mean(axis=(1, 2), dtype=jnp.float32)
    return e[:, 0] if e.ndim == 3 else e


def describe_misfit(params, shapes) -> str | None:
    """Describes the first parameter that is missing or has another shape; None where all fit.

    Args:
      params: a tree of arrays.
      shapes: the model's own tree, of arrays or shapes.
    """
    actual, expected = (flax.traverse_util.flatten_dict(tree, sep='/') for tree in (params, shapes))
    for name in sorted(actual.keys() | expected.keys()):
        leaf_shapes = [side[name].shape if name in side else None for side in (actual, expected)]
        if leaf_shapes[0] != leaf_shapes[1]:
            problems = ['is missing' if shape is None else f'has shape {shape}' for shape in leaf_shapes]
            return f'{name} {problems[0]} there and {problems[1]} in the model'
    return None


def with_parameters(model: Model, params) -> Model:
    """A model whose `init` returns given parameters, whatever the key.

    Args:
      model: the model of these parameters.
      params: a tree of arrays like that of `model.init`; for any other tree, `init` raises a UserError.
    """

    def init(key, inputs):
        problem = describe_misfit(params, jax.eval_shape(model.init, key, inputs))
        if problem:
            raise UserError(f'the parameters of a model do not fit it: {problem}.')
        return params

    return model._replace(init=init)


def start_from_teacher(teacher_params: dict, initial: dict, copies_head: bool) -> dict:
    """Copies a teacher's parameters into a student, wherever both have the same name.

    Args:
      teacher_params: the teacher's parameters.
      initial: the student's own.
      copies_head: whether to copy the head, too, because both predict the same labels.

    Returns:
      A tree like `initial`.

    Raises:
      UserError: a parameter has another shape in the teacher.
    """
    teacher_leaves = dict(jax.tree_util.tree_leaves_with_path(teacher_params))

    def choose(path, own):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        teacher_leaf = teacher_leaves.get(path)
        if teacher_leaf is None or (name.split('/')[0] in HEADS and not copies_head):
            return own
        if teacher_leaf.shape != own.shape:
            raise UserError(
                f'model.initial is teacher, but {name} is {own.shape} in the student and '
                f'{teacher_leaf.shape} in the teacher; give both the same sizes, or set model.initial to '
                'random.'
            )
        return teacher_leaf

    return jax.tree_util.tree_map_with_path(choose, initial)
