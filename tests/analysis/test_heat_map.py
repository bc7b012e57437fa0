"""The heat map's size and what stands in it."""

from td_jax.analysis import heat_map


def test_a_thousand_classes_fit_into_a_picture(tmp_path):
    rows = {f'n{i}': {'s_g,s_h': i / 999, 'e_g,s_h': 0.5} for i in range(1000)}
    heat_map.draw({'td': rows}, tmp_path / 'many.png', 'CKA')
    picture = (tmp_path / 'many.png').read_bytes()
    assert int.from_bytes(picture[20:24], 'big') < 6000


def test_names_of_folders_are_drawn_as_they_are(tmp_path):
    """Neither a formula of TeX, here one that ends too early, nor a byte that is no text ends it."""
    for count in (1, 30):
        rows = {f'$x_$ \udcff {i}': {'s_g,s_h': 0.5} for i in range(count)}
        heat_map.draw({'td ($x_$ \udcff)': rows}, tmp_path / 'named.png', 'CKA')
        assert (tmp_path / 'named.png').read_bytes().startswith(b'\x89PNG')
