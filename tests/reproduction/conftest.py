"""A fixture that several tests of tables use."""

import pytest

from td_jax.reproduction import cells, tables


@pytest.fixture
def one_table(monkeypatch):
    """A function (rows, base config) that replaces all tables by one on digits, without tuned choices."""

    def make(rows, base_config):
        table = tables.Table('Tiny', 'digits', {'all': {}}, rows, 'Train from scratch')
        monkeypatch.setattr(tables, 'TABLES', {'tiny': table})
        monkeypatch.setattr(cells, 'read_tuned', lambda name: {})
        monkeypatch.setattr(cells, 'base_config', lambda name: base_config())

    return make
