"""Tiny random checkpoints of the reward models, on disk as the published ones are.

The names and the shapes' structure are those of the originals' own files; sizes are small. The
sizes of the published ones are here too, for tests of the loaders on the meta device.
"""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    T5Config,
    T5ForConditionalGeneration,
)

from srrl.shapes.pipeline import build_tokenizer

Shape = tuple[int, ...]
IMAGEREWARD = {
    "width": 1024,
    "blocks": 24,
    "patch": 16,
    "size": 224,
    "hidden": 768,
    "layers": 12,
    "inner": 3072,
    "words": 30524,
    "positions": 512,
}
TINY_IMAGEREWARD = {
    "width": 128,
    "blocks": 2,
    "patch": 16,
    "size": 64,
    "hidden": 64,
    "layers": 2,
    "inner": 128,
    "words": 200,
    "positions": 64,
}


def imagereward_shapes(s: dict[str, int]) -> Iterator[tuple[str, Shape]]:
    """Every tensor of ImageReward.pt."""
    v, t, w, h = "blip.visual_encoder.", "blip.text_encoder.", s["width"], s["hidden"]
    yield v + "cls_token", (1, 1, w)
    yield v + "pos_embed", (1, (s["size"] // s["patch"]) ** 2 + 1, w)
    yield v + "patch_embed.proj.weight", (w, 3, s["patch"], s["patch"])
    yield v + "patch_embed.proj.bias", (w,)
    for n in range(s["blocks"]):
        block = f"{v}blocks.{n}."
        yield from norm(block + "norm1", w)
        yield from linear(block + "attn.qkv", w, 3 * w)
        yield from linear(block + "attn.proj", w, w)
        yield from norm(block + "norm2", w)
        yield from linear(block + "mlp.fc1", w, 4 * w)
        yield from linear(block + "mlp.fc2", 4 * w, w)
    yield from norm(v + "norm", w)
    yield t + "embeddings.position_ids", (1, s["positions"])
    yield t + "embeddings.word_embeddings.weight", (s["words"], h)
    yield t + "embeddings.position_embeddings.weight", (s["positions"], h)
    yield from norm(t + "embeddings.LayerNorm", h)
    for n in range(s["layers"]):
        layer = f"{t}encoder.layer.{n}."
        for attention, source in (("attention", h), ("crossattention", w)):
            yield from linear(f"{layer}{attention}.self.query", h, h)
            yield from linear(f"{layer}{attention}.self.key", source, h)
            yield from linear(f"{layer}{attention}.self.value", source, h)
            yield from linear(f"{layer}{attention}.output.dense", h, h)
            yield from norm(f"{layer}{attention}.output.LayerNorm", h)
        yield from linear(layer + "intermediate.dense", h, s["inner"])
        yield from linear(layer + "output.dense", s["inner"], h)
        yield from norm(layer + "output.LayerNorm", h)
    yield from linear("blip.vision_proj", w, 256)
    yield from linear("blip.text_proj", h, 256)
    sizes = (h, 1024, 128, 64, 16, 1)
    for place, (one, two) in zip((0, 2, 4, 6, 7), pairwise(sizes), strict=True):
        yield from linear(f"mlp.layers.{place}", one, two)


def linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield name + ".weight", (outputs, inputs)
    yield name + ".bias", (outputs,)


def norm(name: str, size: int) -> Iterator[tuple[str, Shape]]:
    yield name + ".weight", (size,)
    yield name + ".bias", (size,)


def random_state(shapes, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes:
        if name.endswith("position_ids"):
            state[name] = torch.arange(shape[-1]).expand(shape).clone()
        else:
            scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
            state[name] = scale * torch.randn(shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                state[name] += 1
            state[name] = state[name].bfloat16().float()  # the original VQAScore rounds so
    return state


def bert_vocabulary(folder: Path) -> Path:
    """A BERT tokenizer's folder: special tokens, letters, and a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    words += ["##" + letter for letter in letters if letter.islower()]
    words += ["red", "blue", "circle", "square", "above", "left", "of"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def save_imagereward(folder: Path) -> dict[str, str]:
    """Options of a tiny ImageReward."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(random_state(imagereward_shapes(TINY_IMAGEREWARD)), folder / "ImageReward.pt")
    return {"model": str(folder), "tokenizer": str(bert_vocabulary(folder / "bert"))}


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer like T5's: pieces with a leading space mark, `</s>` at the end."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [("▁" + word, -3.0) for word in ("Yes", "No", "Does", "this", "figure", "show")]
    pieces += [(chr(c), -6.0) for c in range(33, 127)] + [("▁", -5.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("\n", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def vqa_configs() -> tuple[T5Config, CLIPVisionConfig]:
    t5 = T5Config(
        vocab_size=256,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    return t5, vision


def vqa_state(t5: T5Config, vision: CLIPVisionConfig, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a published CLIP-FlanT5, under its names."""
    shapes = {}
    with torch.device("meta"):
        language, tower = T5ForConditionalGeneration(t5), CLIPVisionModel(vision)
    for name, tensor in language.state_dict().items():
        shapes[name] = tuple(tensor.shape)
    shapes["lm_head.weight"] = shapes["shared.weight"]
    for name, tensor in tower.state_dict().items():
        if not name.endswith("position_ids"):
            name = "vision_model." + name.removeprefix("vision_model.")
            shapes["vision_tower.vision_tower." + name] = tuple(tensor.shape)
    shapes |= dict(linear("mm_projector.0", vision.hidden_size, t5.d_model))
    shapes |= dict(linear("mm_projector.2", t5.d_model, t5.d_model))
    state = random_state(sorted(shapes.items()), seed)
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        state[copy] = state["shared.weight"].clone()
    state["embed_tokens.weight"] = state["shared.weight"].clone()
    return state


def save_vqascore(folder: Path, shards: int = 2) -> dict[str, str]:
    """Options of a tiny CLIP-FlanT5 in `shards` .bin files, as the published one is."""
    t5, vision = vqa_configs()
    state = vqa_state(t5, vision)
    t5.save_pretrained(folder)
    CLIPVisionModel(vision).save_pretrained(folder / "clip")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {
        "mm_vision_tower": str(folder / "clip"),
        "mm_vision_select_layer": -2,
        "model_type": "t5",
        "tie_word_embeddings": False,
    }
    del settings["scale_decoder_outputs"]  # of transformers 5, which says it so
    (folder / "config.json").write_text(json.dumps(settings))
    names = sorted(state)
    index = {
        name: f"pytorch_model-{1 + i % shards:05d}-of-{shards:05d}.bin"
        for i, name in enumerate(names)
    }
    for file in set(index.values()):
        torch.save({n: state[n] for n in names if index[n] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": index})
    )
    t5_tokenizer().save_pretrained(folder / "words")
    return {"model": str(folder), "tokenizer": str(folder / "words")}


def save_clipscore(folder: Path) -> dict[str, str]:
    """Options of a tiny CLIPModel."""
    words = build_tokenizer()
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": len(words),
            "max_position_embeddings": 16,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return {"model": str(folder)}


QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_qwenvl(folder: Path) -> dict[str, str | int]:
    """Options of a tiny Qwen2.5-VL."""
    special = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, "Ye", "Yes"])}
    core = Tokenizer(models.BPE(vocabulary, [("Y", "e"), ("Ye", "s")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = PreTrainedTokenizerFast(
        tokenizer_object=core,
        additional_special_tokens=special,
        pad_token="<|endoftext|>",
        chat_template=QWEN_TEMPLATE,
    )
    ids = {
        name: words.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end", "endoftext")
    }
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            },
            "bos_token_id": ids["endoftext"],
            "eos_token_id": ids["endoftext"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=8 * 28 * 28).save_pretrained(folder)
    return {"model": str(folder), "side": 56}


SAVE = {
    "imagereward": save_imagereward,
    "vqascore": save_vqascore,
    "clipscore": save_clipscore,
    "qwenvl": save_qwenvl,
}


def tiny_options(folder: Path, *names: str) -> dict[str, dict[str, str]]:
    """reward.options of tiny checkpoints of the named rewards, written below a folder."""
    return {name: SAVE[name](folder / name) for name in names}
