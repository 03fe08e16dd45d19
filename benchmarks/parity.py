"""The pipeline against diffusers' own, from the prompt to the waveform, where diffusers' text path still runs.

    python -m venv /tmp/older
    /tmp/older/bin/pip install "torch>=2.11,<2.15" "transformers==4.57.*" "diffusers==0.36.*" "huggingface-hub<1" \
        accelerate scipy
    /tmp/older/bin/python -m benchmarks.parity --out benchmarks/results/parity.json

With transformers 5 that path fails, so this needs an environment of the older pair. Both classes get the same parts:
the released model's structure, rates and lengths with random weights and fewer channels. diffusers pads every prompt
to 512 tokens, the package to the longest of them; the waveforms must agree all the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import diffusers
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import ClapConfig, ClapModel, RobertaTokenizerFast

from benchmarks.machine import describe_machine
from musicldm.models.clap import clap_feature_extractor
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.schedulers import make_scheduler
from vocoder import MelConfig, make_generator

TOLERANCE = 1e-4
PROMPTS = ["techno with a strong, upbeat tempo and high melodic riffs", "solo piano, slow"]
NEGATIVE = ["low quality", "drums and other noises, distorted"]
CASES = [  # scheduler, further arguments
    ("ddim", {}),
    ("ddim", {"eta": 1.0}),
    ("ddim", {"guidance_scale": 1.0}),
    ("ddim", {"negative_prompt": NEGATIVE}),
    ("ddim", {"audio_length_in_s": 3.72}),
    ("pndm", {}),
    ("lms", {}),
    ("euler", {}),
    ("euler-a", {}),
    ("heun", {}),
    ("dpm++", {}),
    ("unipc", {}),
]


def make_parts() -> dict:
    """Parts of the released model's structure with random weights that let prompts be heard."""
    torch.manual_seed(0)
    bpe = ByteLevelBPETokenizer(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(PROMPTS + NEGATIVE, vocab_size=400, special_tokens=special, show_progress=False)
    vocabulary = bpe.get_vocab()
    text = {"vocab_size": len(vocabulary), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    clap = ClapModel(ClapConfig(text_config=text, projection_dim=512))
    unet = diffusers.UNet2DConditionModel(
        sample_size=256,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        block_out_channels=(32, 64, 96, 160),
        cross_attention_dim=(32, 64, 96, 160),
        attention_head_dim=(1, 2, 3, 5),
        class_embed_type="simple_projection",
        class_embeddings_concat=True,
        projection_class_embeddings_input_dim=512,
    )
    vae = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=8,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        scaling_factor=0.9,
    )
    vocoder = make_generator(MelConfig(), 64, (5, 4, 2, 2, 2), (16, 16, 8, 4, 4))
    with torch.no_grad():
        for weight in clap.text_model.parameters():
            if weight.ndim > 1:
                weight.mul_(10)
        unet.class_embedding.weight.mul_(20)
        vae.decoder.conv_out.weight.mul_(20)
        mel = vae.decode(torch.randn(1, 8, 32, 16)).sample.squeeze(1)
        vocoder.conv_post.weight.mul_(0.3 / vocoder(mel)[:, 1000:-1000].std())
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return {
        "vae": vae.eval(),
        "text_encoder": clap.eval(),
        "tokenizer": RobertaTokenizerFast(tokenizer_object=bpe._tokenizer, model_max_length=512),
        "feature_extractor": clap_feature_extractor(),
        "unet": unet.eval(),
        "scheduler": scheduler,
        "vocoder": vocoder.eval(),
    }


def compare(ours: MusicLDMPipeline, theirs, scheduler: str, arguments: dict) -> dict:
    """Both waveforms for the two prompts from generators of one seed, and how far they are apart."""
    arguments = {"audio_length_in_s": 10.24, "num_inference_steps": 5} | arguments
    audios = []
    for pipeline in (ours, theirs):
        pipeline.scheduler = make_scheduler(scheduler, ours.scheduler)
        generator = torch.Generator("cpu").manual_seed(0)
        audios.append(torch.from_numpy(pipeline(PROMPTS, generator=generator, **arguments).audios))
    difference = (audios[0] - audios[1]).abs().max().item()
    shapes = [list(audio.shape) for audio in audios]
    return {
        "scheduler": scheduler,
        **arguments,
        "shape": shapes[0],
        "standard_deviation": audios[1].std().item(),
        "difference_between_prompts": (audios[1][0] - audios[1][1]).abs().max().item(),
        "largest_difference": difference,
        "within_tolerance": shapes[0] == shapes[1] and difference <= TOLERANCE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    parts = make_parts()
    ours, theirs = MusicLDMPipeline(**parts), diffusers.MusicLDMPipeline(**parts)
    cases = []
    for scheduler, arguments in CASES:
        cases.append(compare(ours, theirs, scheduler, arguments))
        print(json.dumps(cases[-1]), file=sys.stderr)
    result = {
        "what": "largest difference of the package's waveforms from diffusers.MusicLDMPipeline's, prompt to waveform",
        "machine": describe_machine(),
        "tolerance": TOLERANCE,
        "largest_difference": max(case["largest_difference"] for case in cases),
        "cases": cases,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    if not all(case["within_tolerance"] for case in cases):
        sys.exit("the waveforms differ by more than the tolerance")


if __name__ == "__main__":
    main()
