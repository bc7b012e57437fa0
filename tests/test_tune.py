"""The command that tunes, in processes of its own."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def test_what_cannot_be_tuned_is_one_line(tmp_path):
    def start(*flags):
        command = [sys.executable, '-m', 'td_jax.tune', '--columns=digits', f'--workdir={tmp_path / "t"}']
        return subprocess.Popen(
            [*command, f'--output={tmp_path / "o.json"}', *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ,
        )

    processes = (
        start('--config=digit'),
        start('--config=digits', '--trials=1'),
        start('--config=movielens', '--columns=Horror'),
        start('--config=digits', f'--output={tmp_path / "missing" / "o.json"}'),
    )
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [2] * len(processes)
    assert [out for out, _ in outputs] == [''] * len(processes)
    (unknown,), (single,), (genre,), (folder,) = (err.splitlines() for _, err in outputs)
    assert unknown.startswith("td_jax: --config 'digit' is not known. Did you mean digits? Known: ")
    assert single.startswith('td_jax: flag --trials=1: ')
    assert genre.startswith("td_jax: --columns 'Horror' is not known. Known: Drama, ")
    assert (
        folder
        == f'td_jax: --output {tmp_path / "missing" / "o.json"} cannot be written: its folder is missing.'
    )
    assert list(tmp_path.iterdir()) == []
