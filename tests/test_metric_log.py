"""metrics.jsonl and the events hold the same, whatever was there before."""

import json

import pytest
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.util import tensor_util

from td_jax import metric_log
from td_jax.errors import UserError

LINES = [{'step': 2, 'loss': 0.5}, {'step': 4, 'loss': 0.25, 'rate': 3.0}]


def events_of(folder):
    """{(step, name): value} of all event files, as TensorBoard reads them."""
    found = {}
    for path in folder.glob(metric_log.EVENTS):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                assert (event.step, value.tag) not in found
                found[event.step, value.tag] = float(tensor_util.make_ndarray(value.tensor))
    return found


def as_events(lines):
    return {(line['step'], name): value for line in lines for name, value in line.items() if name != 'step'}


def test_what_is_written_is_in_both(tmp_path):
    with metric_log.opened(tmp_path, []) as log:
        for line in LINES:
            log.write(line['step'], {name: value for name, value in line.items() if name != 'step'})
    assert [json.loads(line) for line in (tmp_path / metric_log.FILE).read_text().splitlines()] == LINES
    assert metric_log.read(tmp_path) == LINES
    assert events_of(tmp_path) == as_events(LINES)


def test_a_run_goes_on_after_the_lines_it_keeps(tmp_path):
    for kept, written in (([], LINES), (LINES[:1], [{'step': 4, 'loss': 7.0}])):
        with metric_log.opened(tmp_path, kept) as log:
            for line in written:
                log.write(line['step'], {name: value for name, value in line.items() if name != 'step'})
    expected = [LINES[0], {'step': 4, 'loss': 7.0}]
    assert metric_log.read(tmp_path) == expected
    assert events_of(tmp_path) == as_events(expected)


@pytest.mark.parametrize('rest', ['{"step": 6, "lo', '\x00\x00', '[1]', '{"loss": 1.0}', '\xff'])
def test_a_damaged_line_is_left_out(tmp_path, rest):
    text = ''.join(json.dumps(line) + '\n' for line in LINES)
    (tmp_path / metric_log.FILE).write_bytes((text + rest).encode('latin-1'))
    assert metric_log.read(tmp_path) == LINES


def test_no_file_has_no_lines(tmp_path):
    assert metric_log.read(tmp_path) == []


def test_a_folder_in_its_place_is_refused(tmp_path):
    (tmp_path / metric_log.FILE).mkdir()
    with pytest.raises(UserError, match='cannot be read'):
        metric_log.read(tmp_path)
