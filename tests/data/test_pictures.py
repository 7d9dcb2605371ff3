"""Pictures of every mode that Pillow reads, as grey levels."""

import numpy as np
import pytest
from PIL import Image

from pyro_vae.data.pictures import PictureReader, is_coloured

GREY = np.random.RandomState(0).randint(0, 256, (6, 8)).astype(np.uint8)
COLOURS = np.stack([GREY, GREY[::-1], 255 - GREY], -1)


def palette():
    picture = Image.fromarray(GREY // 64)
    picture = picture.convert("P") if picture.mode != "P" else picture
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    return picture


MODES = {
    "L": (Image.fromarray(GREY), GREY),
    "RGB": (Image.fromarray(COLOURS), COLOURS),
    "1": (Image.fromarray(GREY > 127), np.where(GREY > 127, 255, 0)),
    "I;16": (Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
    "I": (Image.fromarray(GREY.astype(np.int32) * 257), GREY),
    "F": (Image.fromarray((GREY / 255).astype(np.float32)), GREY),
    "P": (palette(), np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])[GREY // 64]),
    "CMYK": (Image.fromarray(COLOURS).convert("CMYK"), COLOURS),
    "LA": (Image.fromarray(np.stack([GREY, np.full_like(GREY, 255)], -1)), np.stack([GREY] * 3, -1)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode):
    picture, wanted = MODES[mode]
    assert picture.mode == mode
    reader = PictureReader()
    assert np.array_equal(reader.levels(picture), wanted) and reader.transparent == 0


@pytest.mark.parametrize("background", [0, 255])
def test_what_is_transparent_shows_the_background(background):
    alpha = np.where(np.arange(8) % 2, 255, 0).astype(np.uint8) * np.ones((6, 1), np.uint8)
    reader = PictureReader(background=background)
    found = reader.levels(Image.fromarray(np.concatenate([COLOURS, alpha[..., None]], -1)))
    assert np.array_equal(found, np.where(alpha[..., None] == 255, COLOURS, background)) and reader.transparent == 1
    half = PictureReader(background=background).levels(Image.fromarray(np.dstack([GREY, np.full_like(GREY, 51)])))
    assert np.abs(half[..., 0] - (0.2 * GREY + 0.8 * background)).max() <= 1


def test_a_transparent_palette(tmp_path):
    palette().save(tmp_path / "file.png", transparency=0)
    found = PictureReader(background=77).read(tmp_path / "file.png")
    assert (found[GREY // 64 == 0] == 77).all() and (found[GREY // 64 == 1] == (255, 0, 0)).all()


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "webp", "pgm", "tga", "ppm"])
def test_formats_without_loss(tmp_path, suffix):
    colours = suffix == "ppm"
    Image.fromarray(COLOURS if colours else GREY).save(
        tmp_path / f"file.{suffix}", **({"lossless": True} if suffix == "webp" else {})
    )
    found = PictureReader().read(tmp_path / f"file.{suffix}")
    assert np.array_equal(found if found.ndim == 2 or colours else found[..., 0], COLOURS if colours else GREY)


def test_sixteen_bits_are_read_from_a_file(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "file.png")
    reader = PictureReader()
    assert np.array_equal(reader.read(tmp_path / "file.png"), GREY) and reader.deepest == int(GREY.max()) * 257


def test_photographs_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    Image.fromarray(GREY).save(tmp_path / "file.png", exif=exif)
    assert np.array_equal(PictureReader().read(tmp_path / "file.png"), np.rot90(GREY, -1))


def test_a_size_is_covered_and_the_rest_cut_at_opposite_sides():
    wide = np.concatenate([np.zeros((4, 4)), np.full((4, 8), 200), np.zeros((4, 4))], 1).astype(np.uint8)
    found = PictureReader((4, 8)).levels(Image.fromarray(wide))
    assert found.shape == (4, 8) and (found == 200).all()
    found = PictureReader((8, 8)).levels(Image.fromarray(np.full((4, 4), 9, np.uint8)))
    assert found.shape == (8, 8) and (found == 9).all()
    assert PictureReader((3, 2)).levels(Image.fromarray(COLOURS)).shape == (3, 2, 3)


@pytest.mark.parametrize(
    ("values", "got"),
    [(np.float32([[0, 2]]), "0 to 2"), (np.int32([[0, 65536]]), "to 65536"), (np.int32([[-1]]), "-1")],
)
def test_levels_of_no_known_scale(values, got):
    with pytest.raises(ValueError, match=f"{got}.*wanted 0 to 65,535, or fractions from 0 to 1"):
        PictureReader().levels(Image.fromarray(values))


def test_formats_that_would_run_a_program_are_not_read(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "file.eps")
    (tmp_path / "file.eps").rename(tmp_path / "file.png")
    with pytest.raises(ValueError, match="in the format EPS are not read"):
        PictureReader().read(tmp_path / "file.png")


def test_colour():
    assert is_coloured(COLOURS) and not is_coloured(GREY) and not is_coloured(np.stack([GREY] * 3, -1))
