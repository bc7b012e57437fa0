"""Predicts ids or images with the student of a finished run.

    python -m td_jax.predict --workdir=RUN --input=FILE_OR_FOLDER --output=predictions.csv

takes a CSV or TSV with the ids that the run's data have (of MovieLens the columns user_id and movie_id), or
an image or a folder of images, and writes a CSV: ratings, or classes with their probabilities.

    python -m td_jax.predict --workdir=RUN --user=ID --top=10

prints the recommendations for a user: the items of the training data with the highest predicted ratings that
the user has not rated there.
"""

from absl import flags

from td_jax import command_line
from td_jax.errors import UserError
from td_jax.files import workdir


def main():
    folder = flags.DEFINE_string('workdir', None, 'Folder of a finished run.')
    input_path = flags.DEFINE_string('input', None, 'CSV or TSV of ids; an image, or a folder of images.')
    output = flags.DEFINE_string('output', None, 'CSV that is made.')
    user = flags.DEFINE_string('user', None, 'Id of a user to recommend something to, instead of --input.')
    count = flags.DEFINE_integer('top', 10, 'How much to recommend to --user.', lower_bound=1)
    seed_index = flags.DEFINE_integer(
        'seed_index', 0, "Which of the run's seeds, counted from 0.", lower_bound=0
    )

    def command():
        if bool(input_path.value) == bool(user.value):
            raise UserError('give either --input, a file or a folder, or --user, an id.')
        if flags.FLAGS['top'].present and not user.value:
            raise UserError('--top is for --user; with --input everything in it is predicted.')
        if input_path.value and not output.value:
            raise UserError('--output is missing.')
        # Imported here: it takes seconds, and invalid flags are reported without it.
        from td_jax.predicting import answers

        run, target = workdir.resolve(folder.value), output.value and workdir.resolve(output.value)
        if user.value:
            print(answers.recommend(run, user.value, count.value, target, seed_index.value))
        else:
            print(answers.predict(run, workdir.resolve(input_path.value), target, seed_index.value))

    command_line.run(command, required=('workdir',))


if __name__ == '__main__':
    main()
