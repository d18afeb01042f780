"""The tiny VLM of the embedded world: a real Qwen2.5-VL, small, that knows the shapes' words.

`scripts/pretrain_tiny.py vlm` trains it. Pictures are 32 x 32 in patches of 4, merged 2 x 2: 16
visual tokens.
"""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from srrl.shapes.scenes import COLOURS, SHAPES, SIZE

WORDS = """what user assistant system yes no is there a an the describe picture prompt failed write
edit nothing blob make move add remove shape left right of above below"""
SPECIAL = """<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|>
<|video_pad|>"""
ENDS = ("<|im_end|>", "<|endoftext|>")  # of an answer; padding
FORM = ("<think>", "</think>", "<edit>", "</edit>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH, PATCH = 96, 4


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and each word with and without a space before it as one token."""
    words = sorted({*WORDS.split(), *COLOURS, *SHAPES})
    pieces = [*bytes_to_unicode().values(), *(f + w for w in words for f in ("", "\u0120"))]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL.split())
    # The form's tags are not special: decoding keeps them.
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in FORM])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=ENDS[0],
        pad_token=ENDS[1],
        additional_special_tokens=[t for t in SPECIAL.split() if t not in ENDS],
        padding_side="left",
        chat_template=TEMPLATE,
        model_max_length=256,
    )


def build_vlm(
    seed: int,
) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerFast, Qwen2VLImageProcessorPil]:
    """The untrained network, its tokenizer and its image processor."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    named = ("image_pad", "video_pad", "vision_start", "vision_end")
    image, video, start, end = tokenizer.convert_tokens_to_ids([f"<|{n}|>" for n in named])
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 4,  # to look up and to compare: three are too few
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.05,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            # Slow rotations would make a picture's columns look alike.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10.0,
                "mrope_section": [2, 4, 6],
            },
        },
        vision_config={
            "depth": 3,
            "hidden_size": WIDTH,
            "intermediate_size": 192,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "window_size": SIZE,
            "temporal_patch_size": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0, 1, 2],
            "initializer_range": 0.05,
        },
        tie_word_embeddings=True,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    pixels = SIZE * SIZE
    pictures = Qwen2VLImageProcessorPil(
        size={"shortest_edge": pixels, "longest_edge": pixels},
        patch_size=PATCH,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Qwen2_5_VLForConditionalGeneration(config), tokenizer, pictures
