"""The published Qwen2.5-VL architectures, without their weights: to count with, and, with random
numbers, to try a machine with."""

import torch
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from srrl.errors import UserError
from srrl.models.random_weights import RANDOM
from srrl.shapes.vlm import build_tokenizer

NAMED = "Qwen/{}-Instruct"  # on the hub
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "window_size": 112,
}
# Of the language model: width, of the feed-forward layers, layers, heads, of keys, words, tied.
LANGUAGE = {
    "Qwen2.5-VL-7B": (3584, 18944, 28, 28, 4, 152064, False),
    "Qwen2.5-VL-3B": (2048, 11008, 36, 16, 2, 151936, True),
}


def known_vlm(model: str) -> str | None:
    """The architecture that a hub name or "random:NAME" is of, if it stands here."""
    random = model.removeprefix(RANDOM + ":")
    return next((n for n in LANGUAGE if random == n or model == NAMED.format(n)), None)


def named_vlm(model: str) -> str:
    """The same. Raises UserError, which says what is known."""
    name = known_vlm(model)
    if name is None:
        known = ", ".join(f"{RANDOM}:{n}" for n in LANGUAGE)
        raise UserError(f"the VLM {model!r}: its architecture is not known here: known are {known}")
    return name


def vlm_config(name: str, **tokens: int) -> Qwen2_5_VLConfig:
    """The configuration of one of LANGUAGE; tokens: ids of a tokenizer other than its own."""
    hidden, intermediate, layers, heads, kv, words, tied = LANGUAGE[name]
    text = {
        "vocab_size": words,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "tie_word_embeddings": tied,
    }
    vision = {**VISION, "out_hidden_size": hidden}
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=tied, **tokens
    )


def random_vlm(model: str, dtype: torch.dtype, device: torch.device | str) -> tuple:
    """A "random:" VLM's network on the device, the same each time, with a stand-in for its
    tokenizer (a byte a token, more or less) and its image processor. Raises UserError."""
    name = named_vlm(model)
    tokenizer = build_tokenizer()
    marks = ("image_pad", "video_pad", "vision_start", "vision_end")
    tokens = {
        f"{mark.replace('_pad', '')}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>")
        for mark in marks
    }
    torch.manual_seed(0)
    with torch.device(device):
        network = AutoModelForImageTextToText.from_config(vlm_config(name, **tokens), dtype=dtype)
    return network, tokenizer, Qwen2VLImageProcessorPil()
