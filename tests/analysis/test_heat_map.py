"""The heat map's size and what stands in it."""

from td_jax.analysis import heat_map


def test_a_thousand_classes_fit_into_a_picture(tmp_path):
    rows = {f'n{i}': {'s_g,s_h': i / 999, 'e_g,s_h': 0.5} for i in range(1000)}
    heat_map.draw({'td': rows}, tmp_path / 'many.png', 'CKA')
    picture = (tmp_path / 'many.png').read_bytes()
    assert int.from_bytes(picture[20:24], 'big') < 6000
