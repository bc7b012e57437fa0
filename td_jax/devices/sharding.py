"""Where arrays live: the mesh of devices, and which arrays are cut over which of its axes.

The mesh has two axes. A batch is cut over both, `data` and `fsdp`; parameters and optimizer state are cut
over `fsdp` along their largest axis that it divides, and copied over `data`. With one device nothing is cut.
XLA inserts the communication (jit with NamedSharding).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from td_jax.errors import UserError

DATA, FSDP = 'data', 'fsdp'
BATCH = (DATA, FSDP)


def mesh_shape(config, num_devices: int) -> tuple[int, int]:
    """Computes (data, fsdp) of a config for a number of devices; -1 takes the devices that the other leaves.

    Raises:
      UserError: a mesh that does not use every device once.
    """
    data, fsdp = config.mesh.data, config.mesh.fsdp
    if data < 0 and fsdp < 0:
        raise UserError('mesh.data and mesh.fsdp are both -1; give one of them a number.')
    product = max(data, 1) * max(fsdp, 1)
    if data < 0:
        data = num_devices // product
    if fsdp < 0:
        fsdp = num_devices // product
    if data * fsdp != num_devices:
        raise UserError(
            f'mesh.data={config.mesh.data} and mesh.fsdp={config.mesh.fsdp} do not make the {num_devices} '
            'devices that are there; -1 takes what is left.'
        )
    return data, fsdp


def make_mesh(config, devices=None) -> Mesh:
    """Makes the mesh of a config over all devices of all processes, or over `devices`.

    Raises:
      UserError: a mesh that does not fit the devices, or a batch that does not fit the mesh.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    if config.batch_size % (len(devices) * config.micro_batches):
        parts = f'{len(devices)} device{"s" if len(devices) > 1 else ""}'
        if config.micro_batches > 1:
            parts += f' times micro_batches={config.micro_batches}'
        raise UserError(
            f'batch_size is {config.batch_size}, which {parts} do not divide; choose a multiple of '
            f'{len(devices) * config.micro_batches}.'
        )
    # In the order of processes, so that the rows of a process are next to each other.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(shape), BATCH)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of an array that is cut over all devices along one axis."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH))


def parameter_shardings(mesh: Mesh, tree, first_axis: int = 0):
    """A NamedSharding for each leaf: cut over fsdp along the largest axis that it divides.

    Args:
      mesh: of the run.
      tree: arrays or shapes.
      first_axis: axes before it are never cut; 1 leaves out a leading axis of seeds.
    """
    size = mesh.shape[FSDP]

    def of_leaf(leaf):
        axes = [axis for axis in range(first_axis, len(leaf.shape)) if leaf.shape[axis] % size == 0]
        if size == 1 or not axes:
            return replicated_sharding(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * largest, FSDP))

    return jax.tree.map(of_leaf, tree)


def place(tree, shardings):
    """Puts values where their shardings say, each device its shard alone.

    Args:
      tree: host arrays that every process has in full, or placed arrays.
      shardings: one NamedSharding for all leaves, or a tree of them.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def put(leaf, sharding):
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf), sharding))
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree, shardings)


def abstract_arrays(tree, shardings):
    """Makes a ShapeDtypeStruct with its sharding of each leaf; like `place`, but without data."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def local_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of a global batch that the devices of this process hold."""
    sharding = batch_sharding(mesh)
    indices = [index[0] for index in sharding.addressable_devices_indices_map((batch_size,)).values()]
    return slice(
        min(i.start or 0 for i in indices), max(batch_size if i.stop is None else i.stop for i in indices)
    )


def place_rows(tree, mesh: Mesh, batch_size: int, axis: int = 0):
    """Makes global batches from the rows of each process.

    Args:
      tree: arrays with the rows of `local_rows` on their `axis`.
      mesh: of the run.
      batch_size: rows of all processes.
      axis: of the rows.
    """
    sharding = batch_sharding(mesh, axis)

    def put(leaf):
        shape = (*leaf.shape[:axis], batch_size, *leaf.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return jax.tree.map(put, tree)


def describe_placement(mesh: Mesh, config, trees: dict) -> str:
    """Describes where arrays are, in a few lines for a person.

    Args:
      mesh: of the run.
      config: of the run.
      trees: {name: tree of placed arrays}.
    """
    devices = mesh.devices.size
    kind = mesh.devices.flat[0].device_kind
    lines = [
        f'{devices} {kind} device{"s" if devices > 1 else ""} of {jax.process_count()} '
        f'process{"es" if jax.process_count() > 1 else ""}: mesh data={mesh.shape[DATA]} '
        f'fsdp={mesh.shape[FSDP]}; {config.batch_size // devices} examples per device'
    ]
    sizes = ', '.join(f'{name} {bytes_on_device(tree) / 1e6:.1f}' for name, tree in trees.items())
    return '\n'.join([*lines, f'MB a device: {sizes}'])


def bytes_on_device(tree) -> int:
    """Counts the bytes of a tree on one device; leaves are placed arrays, or made by `abstract_arrays`."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total
