"""The command that tunes, in processes of its own."""

import json
import os
import time

import pytest

from tests import forked


def start(tmp_path, *flags):
    places = [f'--{flag}={tmp_path / flag}' for flag in ('workdir', 'journals', 'output')]
    return forked.start(['-m', 'td_jax.tune', *places, *flags])


def test_what_cannot_be_tuned_is_one_line(tmp_path):
    mistakes = {
        ('--config=digit',): "--config 'digit' is not known. Did you mean digits? Known: ",
        ('--config=digits', '--trials=0'): 'flag --trials=0: ',
        ('--config=digits', '--seeds=1'): 'flag --seeds=1: ',
        ('--config=digits', f'--trials={10**30}'): f'flag --trials={10**30}: ',
        (
            '--config=digits',
            '--methods=td',
        ): 'td is searched on top of supervised, for which --output has no ',
        (
            '--config=digits',
            '--methods=teacher',
            '--sampler_seed=2',
        ): '--sampler_seed is 2, but the teacher is ',
        ('--config=movielens', '--columns=Horror'): "--columns 'Horror' is not known. Known: Drama, ",
        ('--config=movielens', '--methods=dkd'): "--methods 'dkd' is not known. ",
        ('--config=digits', '--split_by=user'): '--split_by is user, but digits has no ratings to split; ',
        ('--config=digits', '--shard=3/2'): '--shard=3/2 is none of N shards; write --shard=I/N',
        ('--config=digits', '--shard=1/2', '--only_show'): '--only_show has no effect with --shard; ',
        ('--config=digits', '--jobs=999'): '--jobs is 999, but this process has ',
        (
            '--config=digits',
            f'--output={tmp_path / "missing" / "o.json"}',
        ): f'--output {tmp_path / "missing" / "o.json"} cannot be written: its folder is missing.',
    }
    processes = [start(tmp_path, *flags) for flags in mistakes]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [2] * len(processes)
    for (out, err), message in zip(outputs, mistakes.values(), strict=True):
        (line,) = err.splitlines()
        assert line.startswith(f'td_jax: {message}')
        assert out == ''
    assert list(tmp_path.iterdir()) == []


def read_chosen(place):
    """Reads the choices that a command wrote."""
    return json.loads((place / 'output').read_text())['digits']


@pytest.mark.long
def test_a_search_over_two_processes_chooses_what_one_does(tmp_path):
    flags = '--config=digits', '--methods=teacher,supervised', '--trials=2', '--seeds=2', '--steps=30'
    outcomes = []
    for jobs in (1, min(2, os.cpu_count())):
        place = tmp_path / str(jobs)
        place.mkdir(exist_ok=True)
        process = start(place, *flags, f'--jobs={jobs}')
        out, err = process.communicate()
        chosen = read_chosen(place)
        at_last = [name for name, record in chosen['searched'].items() if record['at_last_step']]
        # Both are judged by themselves, because there is one method.
        last = (
            f'td_jax: {", ".join(sorted(at_last, reverse=True))} chose the last step: the step budget binds'
        )
        assert process.returncode == (2 if at_last else 0), err
        assert err.splitlines()[-1].startswith(last) == bool(at_last)
        # In the order in which they came.
        journals = (place / 'journals').glob('*.jsonl')
        outcomes.append(
            (out, chosen, sorted(line for path in journals for line in path.read_text().splitlines()))
        )
    assert outcomes[0] == outcomes[1]
    out, chosen, _ = outcomes[0]
    assert [line.partition(':')[0] for line in out.splitlines()] == ['teacher', 'supervised']
    assert chosen.keys() == {'teacher', 'supervised', 'searched'}
    assert all(key.startswith('teacher.') for key in chosen['teacher'])


@pytest.mark.long
def test_two_at_once_and_a_kill(tmp_path):
    """The second call is refused; the first one, killed and called again, ends as if uninterrupted."""
    flags = '--config=digits', '--methods=supervised', '--trials=2', '--seeds=2', '--steps=300'
    alone, place = tmp_path / 'alone', tmp_path / 'place'
    for folder in (alone, place):
        folder.mkdir()
    expected = start(alone, *flags).communicate()[0]
    first, journal = start(place, *flags), place / 'journals' / 'digits-supervised.jsonl'
    try:
        while not journal.exists():
            assert first.poll() is None
            time.sleep(0.05)
        second = start(place, *flags)
        out, err = second.communicate()
        assert (second.returncode, out) == (2, '')
        (line,) = err.splitlines()
        assert line.startswith(
            f'td_jax: the journals of digits in {place / "journals"} are in use by process '
        )
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    before = journal.read_text()
    assert start(place, *flags).communicate()[0] == expected
    assert journal.read_text().startswith(before)
    assert read_chosen(place) == read_chosen(alone)
