"""One page of a folder of runs: tables with intervals, curves, representations, configs.

    python -m td_jax.report --workdir=RUNS --output=report.html

RUNS is the workdir of a run, or a folder with any number of them. The page is one file that needs no network
and can be read on a phone. It lists unfinished runs with the reasons.
"""

from absl import flags

from td_jax import command_line
from td_jax.files import workdir
from td_jax.reporting import page


def main():
    folder = flags.DEFINE_string('workdir', None, 'Folder of a run, or of several.')
    output = flags.DEFINE_string('output', 'report.html', 'The page, a file that is made or replaced.')

    def command():
        target = workdir.resolve(output.value)
        count = page.write(workdir.resolve(folder.value), target)
        print(f'{target}: {count} run{"s" if count > 1 else ""}')

    command_line.run(command, required=('workdir', 'output'))


if __name__ == '__main__':
    main()
