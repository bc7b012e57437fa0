"""Several workers that share a folder or a bucket: every run is trained once, with the results of one."""

import collections
import json
import re
import signal
import time

import pytest
from etils import epath

from td_jax.files import lease, workdir
from td_jax.reproduction import cells
from tests import forked, sharded

pytestmark = pytest.mark.long


def start(what, root, *more):
    return forked.start(['-m', 'tests.sharded', what, root, *more])


def finish(processes):
    """[(exit code, stdout, stderr)] of some processes, which end."""
    outputs = [process.communicate() for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def count_trained(errs):
    """How often each kind of run was trained to its end."""
    ends = re.findall(r'^(\w+) digits[^:]*: step (\d+)/\2 ', ''.join(errs), re.MULTILINE)
    return collections.Counter(ends)


def read_table(root, monkeypatch):
    for name in ('TABLES',):
        monkeypatch.setattr(sharded.tables, name, None)
    for name in ('read_tuned', 'base_config'):
        monkeypatch.setattr(cells, name, None)
    return sharded.make_table(epath.Path(root), True)


def without_places(rows):
    """The cells of a table without how they were computed."""
    return {row: {key: repr(cell[key]) for key in cell} for row, cell in rows.items()}


def test_three_workers_on_a_bucket_make_the_table_of_one(tmp_path, place, monkeypatch):
    """One is killed in a save and started again, one comes late."""
    ((code, _, err),) = finish([start('table', tmp_path)])
    assert code == 0, err
    trained = count_trained([err])
    # Two teachers; four students without a teacher in one run, and two runs of LD and of FD.
    assert trained == {('supervised', '4'): 2, ('supervised', '6'): 1, ('ld', '6'): 2, ('fd', '6'): 2}
    # Of a save before the last, which the end of a run waits for.
    first, second = (
        start('table', place, '1/3'),
        start('table', place, '2/3', '/checkpoints/2/commit_success.txt'),
    )
    out, killed_err = second.communicate()
    assert (second.returncode, out) == (-signal.SIGKILL, ''), killed_err
    workers = [first, start('table', place, '2/3'), start('table', place, '3/3')]
    ended = finish(workers)
    assert [code for code, _, _ in ended] == [0, 0, 0], ended
    errs = [killed_err, *(err for _, _, err in ended)]
    assert count_trained(errs) == trained
    # No lease is left.
    assert [path for path in place.glob('digits/*/.lock') if lease.read(path).seconds_left] == []
    alone, joined = (read_table(root, monkeypatch) for root in (tmp_path, place))
    assert None not in alone.values()
    assert without_places(joined) == without_places(alone)


@pytest.fixture(scope='module')
def compared_alone(tmp_path_factory):
    """(folder, record, stderr) of the comparison of one worker."""
    folder = tmp_path_factory.mktemp('compared') / 'alone'
    ((code, out, err),) = finish([start('comparison', folder)])
    assert code == 0, err
    return folder, json.loads(out.splitlines()[-1]), err


@pytest.mark.parametrize('where', ['folder', 'bucket'])
def test_two_workers_search_and_compare_as_one_does(request, compared_alone, tmp_path, where):
    folder, alone, err = compared_alone
    root = tmp_path / 'shared' if where == 'folder' else request.getfixturevalue('place')
    first = start('comparison', root, '1/2')
    time.sleep(3)
    ended = finish([first, start('comparison', root, '2/2')])
    assert [(code, out) for code, out, _ in ended] == [(0, 'null\n')] * 2, ended
    errs = [worker_err for _, _, worker_err in ended]
    assert count_trained(errs) == count_trained([err])
    assert all('--only_show joins the parts of all' in worker_err for worker_err in errs)
    joined = sharded.make_comparison(root, only_show=True)
    joined = json.loads(json.dumps(joined))
    # All but what is measured.
    joined['best_seconds_per_example'] = alone['best_seconds_per_example']
    assert joined == alone
    assert workdir.read_json(epath.Path(root) / 'choices.json') == workdir.read_json(
        epath.Path(folder) / 'choices.json'
    )
