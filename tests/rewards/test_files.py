"""Picture files are judged as a viewer shows them, and refused where they cannot be."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from rewards.files import read_picture
from srrl.errors import UserError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


RGB, GREY = noise(21, 37, 3), noise(21, 37)


def read(path: Path) -> np.ndarray:
    """[H, W, 3]."""
    return read_picture(path)[0].permute(1, 2, 0).numpy()


def png(path: Path, bits: int, colour: int, rows: np.ndarray, clear: bytes = b"") -> Path:
    """A PNG by hand: rows are bytes [H, n], clear its tRNS. Width 8."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 8, len(rows), bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    clear = chunk(b"tRNS", clear) if clear else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + clear
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(RGB).save(tmp_path / f"x.{suffix}", exif=exif, **lossless)
    with Image.open(tmp_path / f"x.{suffix}") as lying:
        ImageOps.exif_transpose(lying).convert("RGB").save(tmp_path / "upright.png")
    shown = read(tmp_path / f"x.{suffix}")
    assert shown.shape == ((21, 37, 3) if orientation < 5 else (37, 21, 3))
    assert np.array_equal(shown, read(tmp_path / "upright.png"))
    if orientation == 6 and suffix != "jpg":  # the top of what is shown was the left side
        assert np.array_equal(shown, np.rot90(RGB, -1))


def test_exif_that_cannot_be_read_turns_nothing(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=b"Exif\0\0no exif at all")
    assert np.array_equal(read(tmp_path / "x.png"), RGB)


def test_sixteen_bits_of_grey_are_those_of_eight(tmp_path):
    deep = GREY.astype(np.uint16) * 257
    for name, array in (("a.png", deep), ("b.tif", deep), ("c.tif", deep.astype(">u2"))):
        Image.fromarray(array).save(tmp_path / name)
    (tmp_path / "d.pgm").write_bytes(b"P5 37 21 65535\n" + deep.astype(">u2").tobytes())
    for name in ("a.png", "b.tif", "c.tif", "d.pgm"):
        assert np.array_equal(read(tmp_path / name), np.repeat(GREY[..., None], 3, 2)), name
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(deep).save(tmp_path / "e.png", exif=exif)
    assert np.array_equal(read(tmp_path / "e.png")[..., 0], GREY[::-1, ::-1])


def test_sixteen_bits_of_colour_are_those_of_eight(tmp_path):
    rows = noise(4, 24)
    file = png(tmp_path / "x.png", 16, 2, rows.astype(">u2") * np.array(257, ">u2"))
    assert np.array_equal(read(file), rows.reshape(4, 8, 3))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_is_what_it_is_converted_to(mode, tmp_path):
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    picture = Image.fromarray(RGB).convert(mode)
    picture.save(tmp_path / f"x.{suffix}")
    assert np.abs(read(tmp_path / f"x.{suffix}").astype(int) - picture.convert("RGB")).max() <= 1


def test_what_is_transparent_is_white(tmp_path):
    """By an alpha channel, a palette, and one colour of any depth."""
    alpha = Image.fromarray(RGB).convert("RGBA")
    alpha.putalpha(Image.fromarray(np.where(GREY > 127, 255, 0).astype(np.uint8)))
    alpha.save(tmp_path / "alpha.png")
    expected = np.where(GREY[..., None] > 127, RGB, 255)
    assert np.array_equal(read(tmp_path / "alpha.png"), expected)

    palette = Image.new("P", (8, 1))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putdata([0, 1] * 4)
    palette.save(tmp_path / "palette.png", transparency=1)
    shown = read(tmp_path / "palette.png")
    assert shown[0, 0].tolist() == [200, 0, 0] and shown[0, 1].tolist() == [255] * 3

    black, dark = b"\0\0", b"\x55\x55"
    rows = {  # eight pixels of the clear colour, eight of another
        "grey 2": (2, 0, [[0x55, 0x55], [0, 0]], b"\0\1", 0),
        "grey 4": (4, 0, [[0x55] * 4, [0] * 4], b"\0\5", 0),
        "grey 8": (8, 0, [[0x55] * 8, [0] * 8], b"\0\x55", 0),
        "grey 16": (16, 0, [[*dark] * 8, [*black] * 8], dark, 0),
        "colour 8": (8, 2, [[0x55] * 24, [0] * 24], b"\0\x55" * 3, 0),
        "colour 16": (16, 2, [[0x55] * 48, [0] * 48], dark * 3, 0),
    }
    for name, (bits, colour, pixels, clear, other) in rows.items():
        file = png(tmp_path / "x.png", bits, colour, np.array(pixels, np.uint8), clear)
        shown = read(file)
        assert (shown[0] == 255).all() and (shown[1] == other).all(), name


def test_a_cameras_second_picture_is_no_animation(tmp_path):
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    first.save(tmp_path / "one.jpg")
    assert np.array_equal(read(tmp_path / "x.jpg"), read(tmp_path / "one.jpg"))


def moving(path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8, 3) // n) for n in (1, 2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def cut(path: Path) -> None:
    Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[:-300])


def huge(path: Path) -> None:
    """20,000 x 20,000 pixels in a few kilobytes."""
    Image.new("1", (20_000, 20_000)).save(path)


def white_is_zero(path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(path, tiffinfo={262: 0})


BAD = {
    "moving.gif": (moving, "it holds 2 pictures: save the one"),
    "moving.png": (moving, "it holds 2 pictures: save the one"),
    "moving.webp": (moving, "it holds 2 pictures: save the one"),
    "pages.tif": (moving, "it holds 2 pictures: save the one"),
    "cut.png": (cut, "truncated"),
    "cut.jpg": (cut, "truncated"),
    "empty.png": (lambda path: path.touch(), "not a picture"),
    "text.png": (lambda path: path.write_text("hello"), "not a picture"),
    "huge.png": (huge, "more than 179 megapixels: make it smaller"),
    "float.tif": (lambda path: Image.new("F", (8, 8)).save(path), "8 or 16 bits a channel"),
    "long.tif": (lambda path: Image.new("I", (8, 8)).save(path), "8 or 16 bits a channel"),
    "negative.tif": (white_is_zero, "of which 0 is white: save it as PNG"),
    "none.png": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_judged_is_one_line_with_its_name(name, tmp_path, recwarn):
    make, said = BAD[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=said) as error:
        read_picture(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert not recwarn.list
