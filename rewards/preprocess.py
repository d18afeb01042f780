"""Pictures as the reward models' own code prepares them: PIL's bicubic resizing, exactly."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_pil(images: Tensor) -> list[Image.Image]:
    """PIL images of uint8 [B, 3, H, W]. Raises ValueError for any other kind of tensor."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 [B, 3, H, W], not {images.dtype} {list(images.shape)}"
        )
    return [Image.fromarray(a) for a in images.permute(0, 2, 3, 1).cpu().numpy()]


def normalised(image: Image.Image) -> Tensor:
    """float32 [3, H, W] of an RGB image, with CLIP's mean and standard deviation."""
    pixels = np.asarray(image, np.float32) / 255
    pixels = (pixels - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def padded_square(image: Image.Image, size: int) -> Tensor:
    """float32 [3, size, size]: centred on a square of CLIP's mean colour, then resized."""
    width, height = image.size
    if width != height:
        side = max(width, height)
        square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in CLIP_MEAN))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image = square
    return normalised(image.resize((size, size), Image.Resampling.BICUBIC))


def centre_crop(image: Image.Image, size: int) -> Tensor:
    """float32 [3, size, size]: the shorter side resized to `size`, then the middle."""
    width, height = image.size
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return normalised(image.crop((left, top, left + size, top + size)))
