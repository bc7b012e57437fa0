"""The command that tunes, in processes of its own."""

import json
import os

import pytest

from tests import forked


def start(tmp_path, *flags):
    places = [f'--{flag}={tmp_path / flag}' for flag in ('workdir', 'journals', 'output')]
    return forked.start(['-m', 'td_jax.tune', *places, *flags])


def test_what_cannot_be_tuned_is_one_line(tmp_path):
    mistakes = {
        ('--config=digit',): "--config 'digit' is not known. Did you mean digits? Known: ",
        ('--config=digits', '--trials=0'): 'flag --trials=0: ',
        ('--config=movielens', '--columns=Horror'): "--columns 'Horror' is not known. Known: Drama, ",
        ('--config=movielens', '--methods=dkd'): "--methods 'dkd' is not known. ",
        ('--config=digits', '--split_by=user'): '--split_by is user, but digits has no ratings to split; ',
        ('--config=digits', '--journals=gs://bucket/j'): '--journals gs://bucket/j is in a bucket',
        ('--config=digits', '--jobs=999'): '--jobs is 999, but this process has ',
        (
            '--config=digits',
            f'--output={tmp_path / "missing" / "o.json"}',
        ): f'--output {tmp_path / "missing" / "o.json"} cannot be written: its folder is missing.',
    }
    processes = [start(tmp_path, *flags) for flags in mistakes]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [2] * len(processes)
    for (out, err), said in zip(outputs, mistakes.values(), strict=True):
        (line,) = err.splitlines()
        assert line.startswith(f'td_jax: {said}')
        assert out == ''
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_search_over_two_processes_chooses_what_one_does(tmp_path):
    flags = '--config=digits', '--methods=teacher,supervised', '--trials=1', '--steps=30'
    found = []
    for jobs in (1, min(2, os.cpu_count())):
        place = tmp_path / str(jobs)
        place.mkdir(exist_ok=True)
        process = start(place, *flags, f'--jobs={jobs}')
        out, err = process.communicate()
        assert process.returncode == 0, err
        found.append((out, json.loads((place / 'output').read_text())))
    assert found[0] == found[1]
    out, chosen = found[0]
    assert [line.partition(':')[0] for line in out.splitlines()] == ['teacher', 'supervised']
    assert chosen['digits'].keys() == {'teacher', 'supervised'}
    assert all(key.startswith('teacher.') for key in chosen['digits']['teacher'])
