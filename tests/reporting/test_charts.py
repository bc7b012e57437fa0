"""Charts: positions of what is drawn, and colours that everybody can distinguish."""

import importlib.resources
import itertools
import re

import pytest

from td_jax.reporting import charts, curves, markup


def find_elements(figure, tag, kind):
    """The elements of a figure with a tag whose class starts with `kind`."""
    return [part for part in figure.iter(tag) if part.get('class', '').startswith(kind)]


def read_points(text):
    """[(x, y)] of the points of a line."""
    return [tuple(map(float, pair.split(','))) for pair in text.split()]


def test_points_are_where_their_numbers_say():
    curves_to_draw = [
        curves.Curve('a', ((0, 1.0), (50, 3.0), (100, 2.0)), ((0, 0.5, 1.5), (100, 1.0, 5.0))),
        curves.Curve('b', ((100, 5.0),)),
    ]
    figure = charts.draw_lines('loss', curves_to_draw)
    (line,) = find_elements(figure, 'polyline', 'line s0')
    (start, _), (middle, high), (end, low) = read_points(line.get('points'))
    assert middle == pytest.approx((start + end) / 2, abs=0.1)
    (dot,) = find_elements(figure, 'circle', 'dot s1')
    assert float(dot.get('cx')) == end
    # 3 lies a third of the way from 2 to 5, upwards.
    top = float(dot.get('cy'))
    assert (low - high) / (low - top) == pytest.approx(1 / 3, abs=0.01)
    (band,) = find_elements(figure, 'polygon', 'band s0')
    assert [x for x, _ in read_points(band.get('points'))] == [start, end, end, start]
    assert read_points(band.get('points'))[2][1] == top
    # The title is read to a person who hears the page.
    (title,) = figure.iter('title')
    assert title.text == 'loss over steps: a ends at 2; b ends at 5.'
    assert [item[0].tail for item in figure.iter('li')] == ['a', 'b']
    # Ticks are at the values that they name.
    ticks = {text.text: float(text.get('y')) for text in figure.iter('text') if text.get('dy')}
    assert ticks['5'] == pytest.approx(top, abs=0.1)


def test_numbers_far_apart_are_drawn_by_their_logarithms():
    figure = charts.draw_lines('loss', [curves.Curve('a', ((0, 100.0), (1, 1.0), (2, 0.01)))])
    (line,) = find_elements(figure, 'polyline', 'line')
    (_, first), (_, second), (_, third) = read_points(line.get('points'))
    assert second == pytest.approx((first + third) / 2, abs=0.1)
    assert 'loss, logarithmic' in [part.text for part in figure.iter('strong')]
    # No logarithmic axis if a number is 0 or the axis is given.
    for ends, lowest in ((None, 0.0), ((0, 1), 0.01)):
        plain = charts.draw_lines('loss', [curves.Curve('a', ((0, 1.0), (2, lowest)))], ends=ends)
        assert [part.text for part in plain.iter('strong')] == ['loss']


@pytest.mark.parametrize('value', [0.0, -1.0, 1.0, 1e30, 1e-30, 1e99, -1e99, 123456789.25])
def test_a_curve_that_does_not_move_is_drawn(value):
    for points in (((7, value),), ((7, value), (9, value))):
        figure = charts.draw_lines('loss', [curves.Curve('a', points)])
        numbers = re.findall(r'-?[\d.]+|nan|inf', ' '.join(figure.find('svg').itertext()))
        assert numbers
        marks = [*find_elements(figure, 'polyline', 'line'), *find_elements(figure, 'circle', 'dot')]
        assert not re.search('nan|inf', ' '.join(str(mark.attrib) for mark in marks))


def test_extremes_are_kept_of_many_points():
    values = [(step, 1.0 + step % 7 / 100) for step in range(10_000)]
    values[1234], values[8765] = (1234, 9.0), (8765, -9.0)
    thinned = charts.thin_points(values)
    assert len(thinned) <= 400
    assert thinned == sorted(thinned)
    assert {values[0], values[-1], values[1234], values[8765]} <= set(thinned)
    assert charts.thin_points(values[:400]) == values[:400]


def test_differences_are_drawn_with_their_intervals():
    spans = [charts.Span('a', 1.0, (-1.0, 3.0), (0.0, 2.0)), charts.Span('b', -1.0, None, None)]
    figure = charts.draw_spans('difference', spans, 'Left is better.')
    (zero,) = find_elements(figure, 'line', 'axis')
    (thin,), (broad,) = find_elements(figure, 'line', 'interval'), find_elements(figure, 'line', 'wide')
    means = [float(mark.get('cx')) for mark in find_elements(figure, 'circle', 'mean')]
    unit_length = means[0] - float(zero.get('x1'))
    assert means[1] == pytest.approx(float(zero.get('x1')) - unit_length, abs=0.2)
    assert float(thin.get('x2')) - float(thin.get('x1')) == pytest.approx(4 * unit_length, abs=0.5)
    assert float(broad.get('x1')) == pytest.approx(float(zero.get('x1')), abs=0.1)


def compute_luminance(colour):
    """Relative luminance of #rrggbb, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def compute_contrast(first, second):
    """Contrast ratio of two colours, as WCAG 2 defines it."""
    low, high = sorted(map(compute_luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def test_colours_differ_in_lightness_and_are_seen_on_both_grounds():
    style = importlib.resources.files(markup.__package__).joinpath('page.css').read_text()
    modes = [
        dict(re.findall(r'--(\w+): (#[0-9a-f]{6})', part))
        for part in re.findall(r':root \{(.*?)\}', style, re.S)
    ]
    assert len(modes) == 2
    assert compute_luminance(modes[0]['ground']) == 1
    assert compute_luminance(modes[1]['ground']) < 0.02
    for colours in modes:
        lines = [colours[f's{i}'] for i in range(charts.MOST_LINES)]
        assert f's{charts.MOST_LINES}' not in colours
        # CIE 1976 lightness, 0 to 100.
        lightness = [116 * compute_luminance(colour) ** (1 / 3) - 16 for colour in lines]
        assert min(abs(a - b) for a, b in itertools.combinations(lightness, 2)) > 6
        for ground in ('ground', 'raised'):
            assert all(compute_contrast(colour, colours[ground]) >= 3 for colour in lines)
            for text in ('ink', 'soft', 'link', 'warn', 'good', 'bad'):
                assert compute_contrast(colours[text], colours[ground]) >= 4.5
    dashes = [re.search(rf'\.s{i} \{{ [^}}]*dasharray: ([\d ]+)', style) for i in range(charts.MOST_LINES)]
    assert len({dash and dash[1] for dash in dashes}) == charts.MOST_LINES
