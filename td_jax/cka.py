"""Compares representations of student and teacher by CKA for each class: numbers and a heat map.

python -m td_jax.cka --workdir=RUN[,RUN...]
"""

from absl import flags

from td_jax import command_line
from td_jax.analysis import cka, linear_cka
from td_jax.errors import UserError
from td_jax.files import workdir


def main():
    folders = flags.DEFINE_list(
        'workdir',
        None,
        'Folder of a finished run, or several with commas between them; what differs in its seeds alone '
        'is one run.',
    )
    examples = flags.DEFINE_integer('examples', 20, 'Evaluation examples of each class.')
    seed_index = flags.DEFINE_integer(
        'seed_index', None, 'Which seed of each run, counted from 0; by default all.', lower_bound=0
    )
    estimator = flags.DEFINE_enum(
        'estimator', 'debiased', list(linear_cka.ESTIMATORS), 'How CKA is estimated from the examples.'
    )
    output = flags.DEFINE_string(
        'output', None, f'Folder that gets {cka.NUMBERS} and {cka.PICTURE}; by default the first run.'
    )

    def command():
        paths = [workdir.resolve(folder) for folder in folders.value]
        target = workdir.resolve(output.value) if output.value else paths[0]
        if workdir.is_there(target) and not target.is_dir():
            raise UserError(f'--output {target} is no folder; choose another one.')
        comparison = cka.analyse(paths, examples.value, estimator.value, seed_index.value)
        cka.save(comparison, target)
        print(f'{cka.to_markdown(comparison)}\n\n{target / cka.NUMBERS}\n{target / cka.PICTURE}')

    command_line.run(command, required=('workdir',))


if __name__ == '__main__':
    main()
