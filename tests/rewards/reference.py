"""Run by the original packages' interpreter: their own code on our checkpoints and images.

    DIR/bin/python tests/rewards/reference.py imagereward|vqascore JOB.json OUT.pt

JOB.json: {"model": folder, "tokenizer": folder, "images": [files], "prompts": [...]}. Writes
tokens, pixels and scores.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image

from rewards.originals import OriginalVQAScore, imagereward_from


def imagereward(job: dict) -> dict:
    model = imagereward_from(Path(job["model"]), job["tokenizer"], "cpu")
    images = [Image.open(file) for file in job["images"]]
    tokens = model.blip.tokenizer(
        job["prompts"], padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    with torch.no_grad():
        scores = [model.score(p, i) for p, i in zip(job["prompts"], images, strict=True)]
    return {
        "tokens": tokens.input_ids,
        "pixels": torch.stack([model.preprocess(image) for image in images]),
        "scores": torch.tensor(scores, dtype=torch.float64),
    }


def vqascore(job: dict) -> dict:
    model = OriginalVQAScore(job["model"], job["tokenizer"]).model
    from t2v_metrics.models.vqascore_models import clip_t5_model as module

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
