"""Resolves `config.dataset.path` and other options that name a folder or a file."""

from etils import epath

from td_jax.errors import Missing, UserError, failure_as_user_error


def resolve(path: str, what: str, is_folder: bool, option: str = 'dataset.path') -> epath.Path:
    """Resolves a path, ~ expanded, to a folder or a file, on this machine or in a bucket.

    Args:
      path: the value of the option.
      what: what has to be there, for a person.
      is_folder: whether a folder is expected, else a file.
      option: the option that names it.

    Raises:
      Missing: it is not there.
      UserError: nothing is named, it cannot be looked at, or it is the other of file and folder.
    """
    if not path:
        raise UserError(f'{option} is empty; name {what}.')
    # ~ may name an unknown user.
    with failure_as_user_error(f'{option} {path} cannot be read'):
        place = epath.Path(path).expanduser()
        if not place.exists():
            raise Missing(f'{option} {path} is not there; name {what}.')
        if place.is_dir() != is_folder:
            kind = 'a file' if is_folder else 'a folder'
            raise UserError(f'{option} {path} is {kind}; name {what}.')
    return place
