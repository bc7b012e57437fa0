"""The command that makes tables, in processes of its own."""

import json
import os
import pathlib
import subprocess
import sys

from td_jax import config as config_lib
from td_jax.files import workdir
from td_jax.reproduction import cells, tables
from td_jax.training import finished

ROOT = pathlib.Path(__file__).parents[1]


def fake(mean, seeds=(0, 1), teacher=0.9):
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


def cells_of(text, row):
    """The cells of a row of a Markdown table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f'| {row} |')]
    return [cell.strip() for cell in line.strip('|').split('|')]


def start(*flags):
    """A real process of the command."""
    return subprocess.Popen(
        [sys.executable, '-m', 'td_jax.reproduce', *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )


def test_an_unknown_table_is_one_line_with_the_known_ones(tmp_path):
    process = start('--tables=33', f'--workdir={tmp_path / "t"}')
    out, err = process.communicate()
    assert (process.returncode, out) == (2, '')
    (line,) = err.splitlines()
    assert line == f"td_jax: --tables '33' is not known. Did you mean 3? Known: {', '.join(tables.TABLES)}."
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_what_it_shows_unless_told_only_to_show(tmp_path):
    root, table = tmp_path / 'runs', tables.TABLES['digits']
    configs = [cells.cell_config(table, '5 to 9', row) for row in table.rows]
    teacher = cells.teacher_folder(root, configs[-1])
    runs = {cells.run_folder(root, config): config for config in configs}
    for folder, config in {teacher: config_lib.teacher_run(configs[-1]), **runs}.items():
        if config.method != 'supervised':
            config.teacher.checkpoint = str(teacher)
        result = dict.fromkeys(finished.RESULT_KEYS) | fake(0.9, teacher=None) | {'steps': config.num_steps}
        folder.mkdir(parents=True)
        workdir.write(folder / workdir.CONFIG, config_lib.to_json(config))
        workdir.write(folder / workdir.RESULT, json.dumps(result))
    before = sorted(root.rglob('*'))

    # Everything is there, so that the first has nothing to run; nothing is there for the second.
    written = start('--tables=digits', f'--workdir={root}')
    shown = start('--tables=digits', f'--workdir={tmp_path / "empty"}', '--only_show')
    (text, _), (missing, _) = outputs = written.communicate(), shown.communicate()
    assert (written.returncode, shown.returncode) == (0, 0)
    assert [err for _, err in outputs] == ['', '']
    assert cells_of(text, 'TD') == ['TD', '2', '0.9000 ± 0.1271', '+0.0000 ± 0.0000']
    assert cells_of(missing, 'TD') == ['TD', '', 'missing', '']
    assert (root / 'tables_digits.md').read_text() + '\n' == text
    assert sorted(root.rglob('*')) == sorted([*before, root / 'tables_digits.md'])
    assert list(tmp_path.iterdir()) == [root]
