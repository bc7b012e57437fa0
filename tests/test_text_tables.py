"""Tables as text, against hand-written ones."""

from td_jax import text_tables


def test_markdown_takes_columns():
    columns = [('method', ['LD', 'TD']), ('n', ['3', '10'])]
    assert text_tables.markdown(columns) == [
        '| method | n |',
        '| --- | --- |',
        '| LD | 3 |',
        '| TD | 10 |',
    ]


def test_columns_are_aligned_left_or_right():
    rows = [('', 'ms', 'shape'), ('student', '0.1', '[4]'), ('teacher', '12.5', '')]
    assert text_tables.align(rows, right=[1]) == [
        '           ms  shape',
        'student   0.1  [4]',
        'teacher  12.5',
    ]
