"""Images side by side as one picture."""

import numpy as np

from clusterq_common.images.contact_sheet import contact_sheet


def test_each_image_is_whole_in_its_place_and_all_else_is_white() -> None:
    images = np.random.default_rng(0).integers(0, 255, (5, 3, 4, 3), dtype=np.uint8)
    sheet = contact_sheet(list(images), 2, gap=1, border=2)
    expected = np.full((2 + 3 * 4 - 1 + 2, 2 + 2 * 5 - 1 + 2, 3), 255, dtype=np.uint8)
    for row, column, image in [(2, 2, 0), (2, 7, 1), (6, 2, 2), (6, 7, 3), (10, 2, 4)]:
        expected[row : row + 3, column : column + 4] = images[image]
    assert (sheet == expected).all()
