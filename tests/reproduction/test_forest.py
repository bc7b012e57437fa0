"""Forest plots: their settings and numbers, what is refused, and the plot of the docs."""

import pathlib
import xml.etree.ElementTree

import numpy as np
import pytest
import scipy.stats
from etils import epath

from td_jax.errors import UserError
from td_jax.reproduction import errors, forest, tables

RESULTS = pathlib.Path(__file__).parents[2] / 'docs' / 'results'
SCRATCH = 'Train from scratch'
SEEDS = [0, 1, 2]


def make_result(values, seeds=SEEDS, metric='rmse', **more):
    """A cell with these values, measured by today's protocol."""
    cell = {'values': list(values), 'mean': float(np.mean(values)), 'seeds': list(seeds), 'metric': metric}
    return cell | {'errors': None, 'protocol': 2} | more


def make_genres():
    """Two genres, in which TD has other seeds and FD is missing in one of them."""
    return {
        'Genre 1': {
            SCRATCH: make_result([1.0, 0.9, 0.7]),
            'Teacher': {'mean': 0.5, 'stderr': None},
            'LD': make_result([0.9, 0.7, 0.6]),
            'FD': make_result([0.9, 0.9, 0.9]),
            'TD': make_result([0.9, 0.9, 0.9], seeds=[3, 4, 5]),
            'TD, shuffled teacher': make_result([0.9, 0.9, 0.9]),
        },
        'Genre 8': {
            SCRATCH: make_result([1.2, 0.8, 0.6]),
            'LD': make_result([1.15, 0.6, 0.45]),
            'FD': None,
            'TD': make_result([0.9, 0.9, 0.9], seeds=[3, 4, 5]),
            'TD, shuffled teacher': make_result([0.9, 0.9, 0.9]),
        },
    }


def test_genres_are_one_setting_and_columns_of_images_are_several():
    images = {
        column: {
            'No distillation': make_result([0.2, 0.3, 0.5], metric='accuracy'),
            'TD': make_result([0.2 + gain, 0.31 + gain, 0.5 + gain], metric='accuracy', protocol=1),
        }
        for column, gain in zip(tables.TABLES['4x_small'].columns, (0.1, -0.1), strict=True)
    }
    ratings, few, many = forest.panels(['3x', '4x_small'], {'3x': make_genres(), '4x_small': images}, None)
    # Without controls, teachers, rows with other seeds, and rows that a genre lacks.
    assert (ratings.title, ratings.baseline, list(ratings.rows)) == (
        'MovieLens100k, temporal split',
        'no distillation',
        ['LD'],
    )
    # For each seed, the mean of its differences in both genres.
    differences = np.mean([[-0.1, -0.2, -0.1], [-0.05, -0.2, -0.15]], axis=0)
    interval = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    np.testing.assert_allclose(ratings.rows['LD'].mean, differences.mean())
    np.testing.assert_allclose(ratings.rows['LD'].paired.interval(), interval)
    assert [panel.title.startswith('CIFAR-10 (reduced scale), ') for panel in (few, many)] == [True, True]
    assert [panel.rows['TD'].mean > 0 for panel in (few, many)] == [True, False]
    assert [panel.verdict('TD') for panel in (few, many)] == ['better', 'worse']
    assert [panel.title.endswith(' (earlier protocol)') for panel in (ratings, few, many)] == [
        False,
        True,
        True,
    ]


def test_one_genre_is_named_and_another_baseline_is_taken():
    (panel,) = forest.panels(['3x_user'], {'3x_user': {'Genre 1': make_genres()['Genre 1']}}, 'LD')
    assert (panel.title, panel.baseline) == ('MovieLens100k, per-user split, Drama', 'LD')
    assert {row: compared.mean for row, compared in panel.rows.items()} == {'FD': pytest.approx(0.5 / 3)}


def test_a_table_of_no_method_shows_all_its_rows():
    rows = {row: make_result([1.0, 0.9, 0.7 + 0.1 * i]) for i, row in enumerate(tables.TABLES['5'].rows)}
    (panel,) = forest.panels(['5'], {'5': {'Genre 1': rows}}, None)
    assert list(panel.rows) == ['1 iteration', '2 to 3 iterations']


def read_svg(path):
    """(description, number of panels) of a forest plot."""
    tree = xml.etree.ElementTree.fromstring(path.read_text())
    (description,) = tree.iter('{http://purl.org/dc/elements/1.1/}description')
    axes = [group for group in tree.iter('{http://www.w3.org/2000/svg}g') if 'axes_' in group.get('id', '')]
    return description.text, len(axes)


def test_the_plot_says_its_numbers_and_the_same_ones_give_the_same_file(tmp_path):
    path, again = (epath.Path(tmp_path / name) for name in ('a.svg', 'b.svg'))
    for file in (path, again):
        forest.draw(['3x'], {'3x': make_genres()}, file, None)
    assert path.read_bytes() == again.read_bytes()
    description, count = read_svg(path)
    # By hand: the mean of -0.075, -0.2 and -0.125, and 4.3027 standard errors of 0.0363.
    assert description == 'MovieLens100k, temporal split: LD -0.1333 (-0.2896 to +0.0230) n.s.'
    assert count == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.svg', 'b.svg']


def test_what_cannot_be_drawn_is_refused(tmp_path):
    path = epath.Path(tmp_path / 'a.svg')
    forest.check(['3x', '4x_small'], path)
    with pytest.raises(UserError, match='table 1 is made of others and has no figure'):
        forest.check(['3x', '1'], path)
    with pytest.raises(UserError, match=r'--forest .*a\.png is not the name of an SVG'):
        forest.check(['3x'], epath.Path(tmp_path / 'a.png'))
    with pytest.raises(UserError, match=r'--forest .*b/a\.svg cannot be written: its folder is missing'):
        forest.check(['3x'], epath.Path(tmp_path / 'b' / 'a.svg'))
    with pytest.raises(UserError, match='--tables=3x: no row has the seeds of its baseline'):
        forest.draw(['3x'], {'3x': {'Genre 1': {SCRATCH: None}}}, path, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_figure_of_the_docs_has_the_numbers_of_the_committed_cells():
    names = ['3x', '3x_user', '4x_small']
    files = [epath.Path(path) for path in sorted(RESULTS.glob('*.npz'))]
    cells = errors.read_tables(files, names, tables.GENRES, list(tables.IMAGES))
    expected = forest.describe(forest.panels(names, cells, None))
    description, count = read_svg(RESULTS / 'forest.svg')
    # The sign of a zero difference depends on the last bits, and so on the processor.
    assert description.replace('-0.0000', '+0.0000') == expected.replace('-0.0000', '+0.0000')
    assert count == 4
