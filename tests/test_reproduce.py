"""The command that makes tables, in processes of its own."""

import json

import numpy as np
import pytest
from etils import epath

from td_jax import config as config_lib
from td_jax import reproduce
from td_jax.files import workdir
from td_jax.reproduction import cells, errors, render, tables
from td_jax.training import dispatch, finished
from tests import forked


def make_cell(mean, seeds=(0, 1), teacher=0.9):
    values = [mean - 0.01, mean + 0.01]
    return {
        'mean': mean,
        'stderr': 0.01,
        'values': values,
        'seeds': list(seeds),
        'teacher': teacher,
        'metric': 'rmse',
        'split': 'test',
    }


def find_cells(text, row):
    """The cells of a row of a Markdown table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f'| {row} |')]
    return [cell.strip() for cell in line.strip('|').split('|')]


def start(*flags):
    """Starts the command in a real process."""
    return forked.start(['-m', 'td_jax.reproduce', *flags])


def test_an_unknown_table_is_one_line_with_the_known_ones(tmp_path):
    process = start('--tables=33', f'--workdir={tmp_path / "t"}')
    out, err = process.communicate()
    assert (process.returncode, out) == (2, '')
    (line,) = err.splitlines()
    assert line == f"td_jax: --tables '33' is not known. Did you mean 3? Known: {', '.join(tables.TABLES)}."
    assert list(tmp_path.iterdir()) == []


def test_flags_without_effect_are_one_line(tmp_path):
    for more, message in (
        (['--from_errors=kept.npz'], '--on_test has no effect with --from_errors; leave one of them out.'),
        (['--dry_run'], '--on_test has no effect with --dry_run; leave one of them out.'),
        (
            ['--from_errors=kept.npz', '--noon_test', '--errors=a.npz'],
            '--errors has no effect with --from_errors; leave one of them out.',
        ),
        (
            ['--shard=1/2', '--noon_test', '--only_show'],
            '--only_show has no effect with --shard; leave one of them out.',
        ),
        (
            ['--dry_run', '--noon_test', '--baseline=LD'],
            '--baseline has no effect with --dry_run; leave one of them out.',
        ),
        (
            ['--only_show', '--teacher_outputs=kept'],
            '--teacher_outputs has no effect with --only_show; leave one of them out.',
        ),
        (
            ['--only_show', '--teacher=vit.npz'],
            '--teacher has no effect with --only_show; leave one of them out.',
        ),
        (
            ['--noon_test', '--from_errors=kept.npz'],
            '--workdir has no effect with --from_errors; leave one of them out.',
        ),
        (['--genres=War'], '--genres has no effect on --tables=digits; leave it out.'),
        (
            ['--noon_test', '--device_tflops=3'],
            '--device_tflops is for --dry_run; leave it out, or add --dry_run.',
        ),
    ):
        flags = ['--tables=digits', f'--workdir={tmp_path / "t"}', '--on_test', *more]
        process = start(*flags)
        out, err = process.communicate()
        assert (process.returncode, out, err) == (2, '', f'td_jax: {message}\n')
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_many_tables_has_a_name_that_a_file_system_holds():
    assert reproduce._file_name(['3', '5_user']) == 'tables_3_5_user.md'
    names = list(tables.TABLES)
    file_names = {reproduce._file_name(names), reproduce._file_name(names[:-1])}
    assert len(file_names) == 2 and max(map(len, file_names)) <= 255


def write_errors_file(path, tables_of=('digits',)):
    """Writes a file of errors of two seeds of two rows; returns the results."""
    rng = np.random.default_rng(0)
    results = {}
    for name in tables_of:
        column = next(iter(tables.TABLES[name].columns))
        rows = {}
        for row in ('Train from scratch', 'TD'):
            values = (rng.random((2, 40)) < 0.7).astype(float)
            rows[row] = make_cell(0.7) | {'values': values.mean(axis=1).tolist(), 'metric': 'accuracy'}
            rows[row] |= {'teachers': [0, 1], 'errors': errors.sum_by_unit(values, np.arange(40))}
        results[name] = {column: rows}
    errors.write(epath.Path(path), results)
    return results


@pytest.mark.long
def test_tables_are_shown_from_a_file_of_errors_alone(tmp_path):
    path = tmp_path / 'errors.npz'
    results = write_errors_file(path)
    damaged = tmp_path / 'damaged.npz'
    damaged.write_bytes(path.read_bytes()[:-100])
    arguments = {
        'shown': ('digits', path),
        'of another table': ('3', path),
        'damaged': ('digits', damaged),
        'missing': ('digits', tmp_path / 'none.npz'),
    }
    running = {name: start(f'--tables={t}', f'--from_errors={p}') for name, (t, p) in arguments.items()}
    running['no folder to run in'] = start('--tables=digits', f'--workdir={path}')
    running['baseline TD'] = start('--tables=digits', f'--from_errors={path}', '--baseline=TD')
    running['unknown baseline'] = start('--tables=digits', f'--from_errors={path}', '--baseline=SRD')
    running['no workdir'] = start('--tables=digits', f'--errors={path}')
    running['no folder'] = start('--tables=digits', f'--workdir={tmp_path}', f'--errors={tmp_path}/a/b.npz')
    outputs = {name: process.communicate() for name, process in running.items()}
    text, shown_err = outputs.pop('shown')
    with_td_baseline, _ = outputs.pop('baseline TD')
    assert (running.pop('shown').returncode, running.pop('baseline TD').returncode, shown_err) == (0, 0, '')
    assert {process.returncode for process in running.values()} == {2}
    rows = {row: None for row in tables.TABLES['digits'].rows} | results['digits']['5 to 9']
    arguments = ['digits'], {'digits': {'5 to 9': rows}}, tables.GENRES, ['CIFAR10']
    assert (text, with_td_baseline) == (render.make(*arguments) + '\n', render.make(*arguments, 'TD') + '\n')
    assert find_cells(with_td_baseline, 'TD')[3] == '' != find_cells(text, 'TD')[3]
    assert ' to ' in find_cells(text, 'TD')[4]
    messages = {name: err for name, (out, err) in outputs.items() if not out}
    assert messages == {
        'of another table': (
            f'td_jax: {path} has nothing of table 3 in these columns; it holds digits: 5 to 9.\n'
        ),
        'unknown baseline': messages['unknown baseline'],
        'damaged': messages['damaged'],
        'missing': f'td_jax: {tmp_path}/none.npz does not exist.\n',
        'no folder to run in': (
            f'td_jax: workdir {path} cannot be written (File exists); choose another --workdir.\n'
        ),
        'no workdir': 'td_jax: --workdir is missing.\n',
        'no folder': f'td_jax: --errors {tmp_path}/a/b.npz cannot be written: its folder is missing.\n',
    }
    assert messages['damaged'].startswith(f'td_jax: {damaged} cannot be read as arrays (')
    assert messages['unknown baseline'].startswith("td_jax: --baseline 'SRD' is not known.")
    assert [messages[name].count('\n') for name in ('damaged', 'unknown baseline')] == [1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['damaged.npz', 'errors.npz']


@pytest.mark.long
def test_the_command_writes_what_it_shows_unless_told_only_to_show(tmp_path):
    root, table = tmp_path / 'runs', tables.TABLES['digits_x']
    configs = [config for row in table.rows for config in cells.runs_of(table, '5 to 9', row)]
    configs_with_teachers = [config for config in configs if config.method != 'supervised']
    runs = {
        cells.teacher_folder(root, config): config_lib.teacher_run(config) for config in configs_with_teachers
    }
    runs |= {cells.run_folder(root, config): config for config in configs}
    assert len(runs) == 10 + 1 + 10 * 11
    for config in configs_with_teachers:
        config.teacher.checkpoint = str(cells.teacher_folder(root, config))
    for folder, config in runs.items():
        seeds = dispatch.seeds(config)
        values = [0.89 if seed < 5 else 0.91 for seed in seeds]
        result = (
            dict.fromkeys(finished.RESULT_KEYS) | make_cell(0.9, seeds, teacher=None) | {'values': values}
        )
        folder.mkdir(parents=True)
        workdir.write(folder / workdir.CONFIG, config_lib.to_json(config))
        workdir.write(folder / workdir.RESULT, json.dumps(result | {'steps': config.num_steps}))
    before = sorted(root.rglob('*'))

    # The first has nothing left to run; for the second everything is missing.
    errors_file = tmp_path / 'kept.npz'
    writing = start('--tables=digits_x', f'--workdir={root}', f'--errors={errors_file}')
    showing = start('--tables=digits_x', f'--workdir={tmp_path / "empty"}', '--only_show')
    (text, _), (missing, _) = outputs = writing.communicate(), showing.communicate()
    assert (writing.returncode, showing.returncode) == (0, 0), outputs
    assert [err for _, err in outputs] == ['', '']
    # Half of the interval: t(0.975) of nine degrees of freedom, 2.2622, times the standard error, 0.01 / 3.
    expected = ['TD', '10', '0.9000 ± 0.0075', '+0.0000 ± 0.0000', 'no errors stored', 'no variance']
    assert find_cells(text, 'TD') == expected
    assert find_cells(missing, 'TD') == ['TD', '', 'missing', '', '', '']
    assert (root / 'tables_digits_x.md').read_text() + '\n' == text
    assert sorted(root.rglob('*')) == sorted([*before, root / 'tables_digits_x.md'])
    assert sorted(tmp_path.iterdir()) == [errors_file, root]
    # Another machine with only the file runs nothing either.
    again = start('--tables=digits_x', f'--workdir={tmp_path / "other"}', f'--errors={errors_file}')
    assert again.communicate() == (text, '')
    assert [path.name for path in (tmp_path / 'other').iterdir()] == ['tables_digits_x.md']
    # Cells without errors have only their values.
    for row, cell in errors.read(epath.Path(errors_file))['digits_x']['5 to 9'].items():
        assert cell['errors'] is None
        assert (cell['seeds'], cell['values']) == (list(range(10)), [0.89] * 5 + [0.91] * 5)
        assert cell['teachers'] == ([0] * 10 if row == 'Train from scratch' else list(range(10)))
        assert cell['protocol'] == config_lib.PROTOCOL
