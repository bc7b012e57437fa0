"""metrics.jsonl and the TensorBoard events hold the same values, whatever was there before."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.util import tensor_util

from td_jax.errors import UserError
from td_jax.files import metric_log

LINES = [{'step': 2, 'loss': 0.5}, {'step': 4, 'loss': 0.25, 'rate': 3.0}]


def read_events(folder):
    """{(step, name): value} of all event files, as TensorBoard reads them."""
    values = {}
    for path in folder.glob(metric_log.EVENTS):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                assert (event.step, value.tag) not in values
                values[event.step, value.tag] = float(tensor_util.make_ndarray(value.tensor))
    return values


def make_events(lines):
    return {(line['step'], name): value for line in lines for name, value in line.items() if name != 'step'}


def test_what_is_written_is_in_both(tmp_path):
    with metric_log.open_log(tmp_path, []) as log:
        for line in LINES:
            log.write(line['step'], {name: value for name, value in line.items() if name != 'step'})
    assert [json.loads(line) for line in (tmp_path / metric_log.FILE).read_text().splitlines()] == LINES
    assert metric_log.read(tmp_path) == LINES
    assert read_events(tmp_path) == make_events(LINES)


def test_a_run_goes_on_after_the_lines_it_keeps(tmp_path):
    for kept_lines, new_lines in (([], LINES), (LINES[:1], [{'step': 4, 'loss': 7.0}])):
        with metric_log.open_log(tmp_path, kept_lines) as log:
            for line in new_lines:
                log.write(line['step'], {name: value for name, value in line.items() if name != 'step'})
    expected = [LINES[0], {'step': 4, 'loss': 7.0}]
    assert metric_log.read(tmp_path) == expected
    assert read_events(tmp_path) == make_events(expected)


def test_what_was_written_before_an_error_is_in_both(tmp_path):
    with pytest.raises(ZeroDivisionError), metric_log.open_log(tmp_path, LINES[:1]) as log:
        log.write(4, {'loss': 0.25, 'rate': 3.0})
        raise ZeroDivisionError
    assert log._file.closed
    assert metric_log.read(tmp_path) == LINES
    assert read_events(tmp_path) == make_events(LINES)


def test_scalars_of_every_kind_are_plain_numbers(tmp_path):
    with metric_log.open_log(tmp_path, []) as log:
        log.write(np.int32(3), {'a': jnp.float32(0.5), 'b': np.float64(0.25), 'c': 2, 'd': np.array(4)})
    (line,) = metric_log.read(tmp_path)
    assert line == {'step': 3, 'a': 0.5, 'b': 0.25, 'c': 2.0, 'd': 4.0}
    assert read_events(tmp_path) == make_events([line])


def test_a_flushed_line_is_on_disk_before_the_end(tmp_path):
    with metric_log.open_log(tmp_path, []) as log:
        log.write(2, {'loss': 0.5})
        log.flush()
        assert metric_log.read(tmp_path) == LINES[:1]
        assert read_events(tmp_path) == make_events(LINES[:1])


def test_a_log_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UserError, match='cannot be written'), metric_log.open_log(tmp_path / 'none', []):
        pass
    (tmp_path / metric_log.FILE).mkdir()
    with pytest.raises(UserError, match='cannot be written'), metric_log.open_log(tmp_path, []):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [metric_log.FILE]


def test_the_lines_after_a_damaged_one_are_kept(tmp_path):
    first, second = (json.dumps(line) for line in LINES)
    (tmp_path / metric_log.FILE).write_text(f'{first}\n{first[:9]}\n{second}\n')
    assert metric_log.read(tmp_path) == LINES
    with metric_log.open_log(tmp_path, metric_log.read(tmp_path)):
        pass
    assert (tmp_path / metric_log.FILE).read_text() == f'{first}\n{second}\n'
    assert read_events(tmp_path) == make_events(LINES)


@pytest.mark.parametrize(
    'rest', ['{"step": 6, "lo', '\x00\x00', '[1]', '7', 'null', '{"step": "6"}', '{"loss": 1.0}', '\xff']
)
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


# --- In a bucket -----------------------------------------------------------------------------------


def fetch(place, folder):
    """A local copy of a run's metrics in a bucket."""
    folder.mkdir()
    for path in (place / metric_log.FILE, *place.glob(metric_log.EVENTS)):
        path.copy(folder / path.name)
    return folder


def write_lines(log, lines):
    for line in lines:
        log.write(line['step'], {name: value for name, value in line.items() if name != 'step'})


def test_a_log_in_a_bucket_goes_there_at_every_flush(place, tmp_path):
    with metric_log.open_log(place, []) as log:
        write_lines(log, LINES[:1])
        log.flush()
        assert metric_log.read(place) == LINES[:1]
        assert read_events(fetch(place, tmp_path / 'flushed')) == make_events(LINES[:1])
        write_lines(log, LINES[1:])
    assert metric_log.read(place) == LINES
    assert read_events(fetch(place, tmp_path / 'closed')) == make_events(LINES)


def test_a_run_in_a_bucket_goes_on_after_the_lines_it_keeps(place, tmp_path):
    for kept_lines, new_lines in (([], LINES), (LINES[:1], [{'step': 4, 'loss': 7.0}])):
        with metric_log.open_log(place, kept_lines) as log:
            write_lines(log, new_lines)
    expected = [LINES[0], {'step': 4, 'loss': 7.0}]
    assert metric_log.read(place) == expected
    assert read_events(fetch(place, tmp_path / 'run')) == make_events(expected)


def test_a_log_in_a_bucket_that_is_not_there_is_refused(bucket):
    place = epath.Path('gs://nobody-made-this/run')
    with pytest.raises(UserError, match='gs://nobody-made-this/run'), metric_log.open_log(place, []):
        pass
