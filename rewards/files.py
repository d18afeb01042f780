"""Picture files as rewards take them: what a viewer shows, on white, in 8 bits."""

import contextlib
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from srrl.errors import UserError

# Pillow brings these pixels of a PNG to 8 bits, but not the one colour that is transparent.
TO_8_BITS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}


def read_picture(path: Path) -> tuple[Tensor, str | None]:
    """uint8 [3, H, W] of a picture file, and the prompt where scripts/sample.py drew it.

    It is turned as its EXIF says and laid on white; 16 bits of grey are rounded to 8. Raises
    UserError for what is no single picture, is cut off, or is too large to be one.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's JPEG
                pictures = getattr(image, "n_frames", 0)
                raise UserError(f"it holds {pictures} pictures: save the one to be judged")
            raw = image.tile[0].args if image.tile else None
            image.load()
            prompt = image.info.get("prompt") if "rounds" in image.info else None
            with contextlib.suppress(Exception):  # EXIF that cannot be read turns nothing
                ImageOps.exif_transpose(image, in_place=True)
            return torch.from_numpy(np.array(on_white(image, raw))).permute(2, 0, 1), prompt
    except FileNotFoundError:
        reason = "no such file"
    except UnidentifiedImageError:
        reason = "not a picture, or of an unknown kind: save it as PNG or JPEG"
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        reason = f"more than {most:.0f} megapixels: make it smaller"
    except Exception as error:  # whatever Pillow's many readers raise
        reason = str(error) or type(error).__name__
    raise UserError(f"cannot read the picture {str(path)!r}: {reason}")


def on_white(image: Image.Image, raw: object) -> Image.Image:
    """The RGB picture; raw: how the file's pixels are laid out, in Pillow's words.

    Raises UserError for numbers of which no file says what is white.
    """
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        tags = getattr(image, "tag_v2", {})  # of a TIFF: bits a sample; 0, where 0 is white
        if tags.get(258, (16,))[0] != 16 or tags.get(262, 1) != 1:
            raise UserError("a TIFF of other than 16 bits, or of which 0 is white: save it as PNG")
        grey = np.asarray(image)
        eight = np.round(grey / 257).astype(np.uint8)
        return Image.fromarray(np.where(grey == clear, 255, eight).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError("its numbers have no white: save it with 8 or 16 bits a channel")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if raw in TO_8_BITS:
        scaled = (np.array(clear) * TO_8_BITS[raw]).astype(int).tolist()
        image.info["transparency"] = tuple(scaled) if isinstance(scaled, list) else scaled
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
