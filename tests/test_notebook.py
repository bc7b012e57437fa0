"""The notebook, run by a Jupyter kernel from the first cell to the last."""

import csv
import json
import pathlib

import nbclient
import nbformat
import pytest
import scipy.stats

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / 'examples' / 'digits.ipynb'


def test_the_notebook_is_kept_without_outputs():
    # Stored outputs could be of another version of the code.
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == 'code']
    assert len(cells) > 5
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.long
def test_the_notebook_runs_and_says_what_its_files_say(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {'metadata': {'path': str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()

    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    text = ''.join(output.text for output in outputs if output.output_type == 'stream')
    assert 'Warning' not in text
    runs = tmp_path / 'runs' / 'notebook'
    values = {}
    for method in ('supervised', 'td'):
        result = json.loads((runs / method / 'result.json').read_text())
        values[method] = result['values']
        assert f'{method}: accuracy {result["mean"]:.3f} (' in text
    low, high = scipy.stats.ttest_rel(values['td'], values['supervised']).confidence_interval()
    assert f'{(low + high) / 2:+.4f} ± {(high - low) / 2:.4f}, n = 5' in text
    assert any('image/png' in output.get('data', {}) for output in outputs)
    pairs = [line.split(' | ')[0] for line in text.splitlines() if line.startswith('| ')]
    states = [f'| {ours}_g, {theirs}_h' for ours in 'sem' for theirs in 'sem']
    assert pairs == ['| student, teacher', '| ---', *states]

    # The notebook shows the predictions that the command wrote.
    with (runs / 'predictions.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['file'] for row in rows] == ['5.png', '7.png', '9.png']
    for row in rows:
        probability = f'{float(row["probability"]):.3f}'
        assert f'a {row["file"][0]} is a {row["class"]} with probability {probability}' in text
