"""The journal of a search: reading, torn lines, refusals and its lock."""

import os
import pathlib
import subprocess
import sys

import pytest

from td_jax.errors import UserError
from td_jax.reproduction import journal

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    """A journal of two runs."""
    new_journal = journal.Journal(tmp_path / 'digits-td.jsonl')
    new_journal.append('digits/td-1', {20: 0.5, 40: 0.1 + 0.2}, {'trial': 0})
    new_journal.append('digits/td-2', {}, {'trial': 1})
    return tmp_path / 'digits-td.jsonl'


CURVES = {'digits/td-1': {20: 0.5, 40: 0.1 + 0.2}, 'digits/td-2': {}}


def test_what_is_appended_is_read_back(path):
    assert journal.Journal(path).curves == CURVES
    assert journal.read(path) == (CURVES, path.stat().st_size)
    assert journal.read(path.with_name('other.jsonl')) == ({}, 0)


def test_workers_read_each_other(path, tmp_path):
    second = journal.Journal(tmp_path / 'digits-td.2of3.jsonl')
    assert second.curves == CURVES
    third = journal.Journal(tmp_path / 'digits-td.3of3.jsonl')
    third.append('digits/td-3', {20: 2.0}, {'data': 'd'})
    # A journal of another method, and a copy.
    journal.Journal(tmp_path / 'digits-td_ld.jsonl').append('digits/td-4', {}, {})
    (tmp_path / 'digits-td.old.jsonl').write_text('damaged\n')
    # Another process is writing the next line.
    with open(tmp_path / 'digits-td.3of3.jsonl', 'a') as file:
        file.write('{"run": "digits/td-5", ')
    for other in (second, journal.Journal(path), journal.Journal(path, is_writer=False)):
        other.refresh()
        assert other.curves == CURVES | {'digits/td-3': {20: 2.0}}
        assert other.data['digits/td-3'] == 'd'
    assert path.read_text().count('\n') == 2


def test_a_journal_in_a_bucket_is_that_in_a_folder(place):
    path = place / 'digits-td.jsonl'
    with journal.lock(place, 'digits'):
        new_journal = journal.Journal(path)
        new_journal.append('digits/td-1', {20: 0.5, 40: 0.1 + 0.2}, {'trial': 0})
        new_journal.append('digits/td-2', {}, {'trial': 1})
    assert journal.Journal(path).curves == journal.read(path)[0] == CURVES


@pytest.mark.parametrize(
    'torn', ['{"run": "digits/td-3", "curve": {"2', '{"run": "c", "curve": {}}', '\0\0\0']
)
def test_a_torn_last_line_is_cut_off_before_anything_is_appended(path, capsys, torn):
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    assert journal.read(path) == (CURVES, len(whole))
    assert path.read_bytes() == whole + torn.encode()
    repaired = journal.Journal(path)
    assert f'td_jax: the last line of {path} is torn' in capsys.readouterr().err
    assert repaired.curves == CURVES
    repaired.append('digits/td-3', {20: 1.0}, {})
    assert path.read_bytes().startswith(whole)
    # Afterwards it is read without a warning.
    assert journal.Journal(path).curves == CURVES | {'digits/td-3': {20: 1.0}}
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    'line',
    ['nothing', '{}', '[1]', '{"run": "a"}', '{"run": "a", "curve": {"x": 1}}', '\0\0', '', '{"op_code": 0'],
)
def test_a_journal_that_is_damaged_in_the_middle_is_refused(path, line):
    first, second = path.read_text().splitlines()
    path.write_text(f'{first}\n{line}\n{second}\n')
    content = path.read_bytes()
    for use in (journal.read, journal.Journal):
        with pytest.raises(UserError, match=r'digits-td\.jsonl is damaged in line 2; delete that line'):
            use(path)
    assert path.read_bytes() == content
    # The fix that the message names.
    path.write_text(f'{first}\n{second}\n')
    assert journal.Journal(path).curves == CURVES


def test_a_journal_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r'cannot be read \(.*\); choose another folder'):
        journal.read(tmp_path)


def test_journals_belong_to_one_process(tmp_path):
    with journal.lock(tmp_path, 'digits'):
        message = (
            f'the journals of digits in {tmp_path} are in use by process {os.getpid()} on .*; wait for it'
        )
        with pytest.raises(UserError, match=message), journal.lock(tmp_path, 'digits'):
            pass
        with journal.lock(tmp_path, 'movielens_by_user'):
            pass
    with journal.lock(tmp_path, 'digits'):
        pass


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        'import pathlib, sys, time; from td_jax.reproduction import journal\n'
        f'with journal.lock(pathlib.Path({str(tmp_path)!r}), "digits"):\n'
        '    print("locked", flush=True); time.sleep(600)'
    )
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == 'locked\n'
        message = f'are in use by process {process.pid} on '
        with pytest.raises(UserError, match=message), journal.lock(tmp_path, 'digits'):
            pass
    finally:
        process.kill()
        process.communicate()
    with journal.lock(tmp_path, 'digits'):
        pass
