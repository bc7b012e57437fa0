"""Several workers on one folder or bucket: every run is trained once, with the results of one worker."""

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


def wait_for_ends(processes):
    """Waits for processes to end: [(exit code, stdout, stderr)]."""
    outputs = [process.communicate() for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def count_trained(errs):
    """{(method, steps): how many of these runs were trained to their end}."""
    ends = re.findall(r'^(\w+) digits[^:]*: step (\d+)/\2 ', ''.join(errs), re.MULTILINE)
    return collections.Counter(ends)


def read_table(root, monkeypatch):
    for name in ('TABLES',):
        monkeypatch.setattr(sharded.tables, name, None)
    for name in ('read_tuned', 'base_config'):
        monkeypatch.setattr(cells, name, None)
    return sharded.make_table(epath.Path(root), True)


def format_cells(rows):
    """The cells of a table, with values as text."""
    return {row: {key: repr(cell[key]) for key in cell} for row, cell in rows.items()}


def test_three_workers_on_a_bucket_make_the_table_of_one(tmp_path, place, monkeypatch):
    """One worker is killed in a save and started again, and one starts late."""
    ((code, _, err),) = wait_for_ends([start('table', tmp_path)])
    assert code == 0, err
    trained = count_trained([err])
    # Two teachers; four students without a teacher in one run, and two runs of LD and of FD.
    assert trained == {('supervised', '4'): 2, ('supervised', '6'): 1, ('ld', '6'): 2, ('fd', '6'): 2}
    # Killed in a save before the last one, because the end of a run waits for that.
    first, second = (
        start('table', place, '1/3'),
        start('table', place, '2/3', '/checkpoints/2/commit_success.txt'),
    )
    out, killed_err = second.communicate()
    assert (second.returncode, out) == (-signal.SIGKILL, ''), killed_err
    workers = [first, start('table', place, '2/3'), start('table', place, '3/3')]
    outcomes = wait_for_ends(workers)
    assert [code for code, _, _ in outcomes] == [0, 0, 0], outcomes
    errs = [killed_err, *(err for _, _, err in outcomes)]
    assert count_trained(errs) == trained
    # All leases are released.
    assert [path for path in place.glob('digits/*/.lock') if lease.read(path).seconds_left] == []
    table_of_one, joined_table = (read_table(root, monkeypatch) for root in (tmp_path, place))
    assert None not in table_of_one.values()
    assert format_cells(joined_table) == format_cells(table_of_one)


@pytest.fixture(scope='module')
def comparison_of_one_worker(tmp_path_factory):
    """(folder, record, stderr) of a comparison by one worker."""
    folder = tmp_path_factory.mktemp('compared') / 'alone'
    ((code, out, err),) = wait_for_ends([start('comparison', folder)])
    assert code == 0, err
    return folder, json.loads(out.splitlines()[-1]), err


@pytest.mark.parametrize('where', ['folder', 'bucket'])
def test_two_workers_search_and_compare_as_one_does(request, comparison_of_one_worker, tmp_path, where):
    folder, record_of_one, err = comparison_of_one_worker
    root = tmp_path / 'shared' if where == 'folder' else request.getfixturevalue('place')
    first = start('comparison', root, '1/2')
    time.sleep(3)
    outcomes = wait_for_ends([first, start('comparison', root, '2/2')])
    assert [(code, out) for code, out, _ in outcomes] == [(0, 'null\n')] * 2, outcomes
    errs = [worker_err for _, _, worker_err in outcomes]
    assert count_trained(errs) == count_trained([err])
    assert all('--only_show joins the parts of all' in worker_err for worker_err in errs)
    joined_record = sharded.make_comparison(root, only_show=True)
    joined_record = json.loads(json.dumps(joined_record))
    # Everything is the same except the measured time.
    joined_record['seconds_per_example'] = record_of_one['seconds_per_example']
    assert joined_record == record_of_one
    assert workdir.read_json(epath.Path(root) / 'choices.json') == workdir.read_json(
        epath.Path(folder) / 'choices.json'
    )
