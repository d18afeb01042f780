"""Run by the original packages' interpreter: their own code on our checkpoints and images.

    DIR/bin/python tests/rewards/reference.py imagereward|vqascore JOB.json OUT.pt

JOB.json: {"model": folder, "tokenizer": folder, "sizes": {...} or null, "images": [files],
"prompts": [...]}. Writes tokens, pixels and scores. What is replaced in the packages is only what
they hard-code: the hub's names of files, and the sizes of their networks.
"""

import json
import sys
from types import SimpleNamespace

import torch
from PIL import Image

from rewards.originals import import_packages


def imagereward(job: dict) -> dict:
    import_packages()
    module = sys.modules["ImageReward.ImageReward"]  # the package's own name hides it
    from ImageReward.models.BLIP import blip, blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer
    from transformers import BertTokenizer

    by_name = BertTokenizer.from_pretrained
    blip.BertTokenizer = SimpleNamespace(from_pretrained=lambda name: by_name(job["tokenizer"]))
    sizes = job["sizes"]
    if sizes:
        width = sizes["width"]
        blip_pretrain.create_vit = lambda *arguments: (
            VisionTransformer(img_size=sizes["size"], patch_size=sizes["patch"], embed_dim=width,
                              depth=sizes["blocks"], num_heads=width // 64), width)  # fmt: skip
        whole, transform = module.MLP, module._transform
        module.MLP = lambda inputs: whole(sizes["hidden"])
        module._transform = lambda size: transform(sizes["size"])
    model = module.ImageReward(med_config=job["med_config"], device="cpu")
    state = torch.load(f"{job['model']}/ImageReward.pt", weights_only=True)
    missing = model.load_state_dict(state, strict=False)
    assert not missing.missing_keys or all("position_ids" in k for k in missing.missing_keys)
    model.eval()
    images = [Image.open(file) for file in job["images"]]
    tokens = model.blip.tokenizer(job["prompts"], padding="max_length", truncation=True,
                                  max_length=35, return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        scores = [model.score(p, i) for p, i in zip(job["prompts"], images, strict=True)]
    return {
        "tokens": tokens.input_ids,
        "pixels": torch.stack([model.preprocess(image) for image in images]),
        "scores": torch.tensor(scores, dtype=torch.float64),
    }


def vqascore(job: dict) -> dict:
    import_packages()
    from t2v_metrics.models.vqascore_models import clip_t5_model as module

    settings = module.CLIP_T5_MODELS["clip-flant5-xl"]
    settings["model"]["path"] = job["model"]
    settings["tokenizer"]["path"] = job["tokenizer"]
    model = module.CLIPT5Model("clip-flant5-xl", device="cpu")
    model.model.float()
    question = module.format_question(
        module.default_question_template.format(job["prompts"][0]), "t5_chat"
    )
    with torch.no_grad():
        scores = model.forward(job["images"], job["prompts"])
    return {
        "tokens": module.t5_tokenizer_image_token(question, model.tokenizer, return_tensors="pt"),
        "pixels": model.load_images(job["images"]),
        "scores": scores.double(),
    }


if __name__ == "__main__":
    name, job_file, out = sys.argv[1:]
    with open(job_file, encoding="utf-8") as file:
        torch.save(globals()[name](json.load(file)), out)
