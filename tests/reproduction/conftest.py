"""What tests of tables share."""

import pytest

from td_jax.reproduction import cells, tables


@pytest.fixture
def one_table(monkeypatch):
    """A function (rows, base config) that makes one table of digits all there is, with nothing tuned."""

    def make(rows, base_config):
        table = tables.Table('Tiny', 'digits', {'all': {}}, rows, 'Train from scratch')
        monkeypatch.setattr(tables, 'TABLES', {'tiny': table})
        monkeypatch.setattr(cells, 'read_tuned', lambda name: {})
        monkeypatch.setattr(cells, 'base_config', lambda name: base_config())

    return make
