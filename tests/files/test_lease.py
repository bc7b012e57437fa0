"""Leases in a bucket: one holder at a time, whatever dies, sleeps or answers late."""

import concurrent.futures
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from td_jax.errors import InUse, UserError
from td_jax.files import lease, workdir

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def use_short_leases(monkeypatch):
    """Makes leases expire after two seconds."""
    monkeypatch.setattr(lease, 'SECONDS', 2.0)
    monkeypatch.setattr(lease, 'RENEWAL', 0.5)


def test_who_holds_a_lease_renews_it_and_frees_it(place, use_short_leases, capsys):
    path = place / 'run' / workdir.LOCK
    assert lease.read(path) == ('0', '', '', 0.0)
    with workdir.lock(place / 'run') as renew:
        first = lease.read(path)
        assert first.holder.startswith('process ') and 0 < first.seconds_left <= 2
        renew()
        assert lease.read(path).generation != first.generation
        # Longer than a lease lasts without renewal.
        time.sleep(2.5)
        assert lease.read(path).seconds_left > 0
        with (
            pytest.raises(InUse, match=f'^workdir {place}/run is in use by {first.holder}; wait for it or'),
            workdir.lock(place / 'run'),
        ):
            pass
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f'td_jax: {place}/run is in use by {first.holder}; waits up to ')
    assert lease.read(path).seconds_left == 0
    start = time.monotonic()
    with workdir.lock(place / 'run'):
        assert time.monotonic() - start < 1
    assert capsys.readouterr().err == ''


def test_a_lease_of_a_dead_process_is_taken_over_when_it_has_expired(place, use_short_leases):
    path = place / workdir.LOCK
    start = time.monotonic()
    dead = lease._replace(path, '0', 'process 7 on elsewhere', 'dead')
    # No other process can take it now.
    assert lease._replace(path, '0', 'another', 'other') is None
    with workdir.lock(place) as renew:
        assert time.monotonic() - start > 1.5
        # The old holder changes nothing if it comes back.
        expired_lease = lease._Lease(path, dead, 'process 7 on elsewhere', 'dead')
        holder = lease.read(path).holder
        for _ in range(2):
            with pytest.raises(InUse, match=f'^workdir {place} was taken over by {holder}, because this'):
                expired_lease.renew()
        expired_lease.release()
        assert lease.read(path).holder == holder
        renew()


HOLDS = """
import sys
from td_jax.files import workdir
with workdir.lock(workdir.resolve(sys.argv[1])):
    print('held', flush=True)
    input()
"""


def test_a_process_that_was_killed_on_this_machine_is_not_waited_for(place, capsys):
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDS, place], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b'held\n'
    assert lease.read(place / workdir.LOCK).seconds_left > 0
    process.kill()
    process.communicate()
    with workdir.lock(place):
        assert capsys.readouterr().err == ''


def test_an_answer_that_was_lost_is_no_loss(place):
    path = place / workdir.LOCK
    generation = lease._replace(path, '0', 'me', 'mine')
    # The client of the bucket repeats the same request.
    assert lease._replace(path, '0', 'me', 'mine') == generation


def test_of_many_at_once_one_holds_it(place, use_short_leases):
    """Each waits for the others or is refused; no two hold it at once."""
    inside, most, entered, mutex = 0, 0, 0, threading.Lock()

    def enter(_):
        nonlocal inside, most, entered
        try:
            with workdir.lock(place):
                with mutex:
                    inside, entered = inside + 1, entered + 1
                    most = max(most, inside)
                time.sleep(0.05)
                with mutex:
                    inside -= 1
        except InUse:
            pass

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(16)))
    assert most == 1
    assert entered > 0


def test_a_bucket_that_is_not_there_is_one_line(bucket):
    with (
        pytest.raises(UserError, match=r'^gs://nobody-made-this/run/\.lock cannot be ') as error_info,
        workdir.lock(workdir.resolve('gs://nobody-made-this/run')),
    ):
        pass
    assert '\n' not in str(error_info.value)
