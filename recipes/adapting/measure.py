"""Does adapted music come nearer to the music that it was adapted to, and does other music stay?

    python -m recipes.adapting.measure --recordings FOLDER --out recipes/adapting/results/measure.json

Three concepts and three adapters of about two minutes each, from the recordings in FOLDER (that of the shared reference
audio), with the configurations `mini` and `lora`; an adapter learns its recordings under a caption. For each: what is
played before and after, by equal seeds and the defaults of ``generate``, as CLAP sees it and as the log-mel statistics
do, which nothing was trained on. ``--only`` does one part; parts are kept in the file beside those that it has.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.results import keep
from musicldm import MusicLDMPipeline
from musicldm.analysis.embedders import LogMelEmbedder
from musicldm.data.clips import read_clip
from musicldm.data.collection import load_clips
from musicldm.evaluate import kernel_distance
from musicldm.evaluate.intervals import bootstrap
from musicldm.generate.environment import model_revision
from musicldm.models.adapters import add_word, load_concept
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.models.loading import find_folder
from musicldm.pipelines.optimize import computes_bfloat16
from musicldm.sampling.schedulers import GUIDANCE, GUIDANCE_INTERVAL, SAMPLER, STEPS, make_scheduler
from musicldm.train import run
from vocoder import mel_config

CONCEPTS = {  # recordings of a kind, and how a caption of the bundled model's kind would put it
    "lofi": (("cue.ogg", "florist.ogg", "city_chill.ogg"), "slow electronic hip hop with drums and synth"),
    "orchestra": (
        ("hungarian_dance_5.ogg", "dance_of_the_sugar_plum_fairy.ogg", "monkeys_spinning_monkeys.ogg"),
        "a string orchestra with celesta and flute",
    ),
    "chip": (("nighttide_waltz.flac", "the_courtyard.ogg", "peasant_kingdom.ogg"), "a waltz for a square wave synth"),
}
# Unlike the captions that a concept is held to (ConceptConfig.prior_captions) and those above: for the bundled CLAP the
# nearest of them has a similarity below 0.45, of those captions among themselves one has up to 0.5.
UNRELATED = (
    "a harpsichord in D minor",
    "marimba and vibraphone, 120 BPM",
    "a banjo, 140 BPM",
    "a sitar",
    "a saxophone",
    "bagpipes",
    "a kalimba, 90 BPM",
    "a shamisen and a koto",
)
ADAPTER = "adapter, "
PARTS = (*CONCEPTS, *(ADAPTER + name for name in CONCEPTS))
FIRST_SEED = 1000


class Heard(NamedTuple):
    """Clips as the two embeddings see them."""

    clap: np.ndarray  # (N, D)
    log_mel: np.ndarray  # (N, 4 F)


class Player:
    """Plays prompts with one pipeline, adapted or not, and embeds what it plays."""

    def __init__(self, model: str, concept: Path | None = None, lora: Path | None = None):
        self.pipeline = MusicLDMPipeline.from_pretrained(model)
        self.pipeline.set_progress_bar_config(disable=True)
        if concept is not None:
            load_concept(self.pipeline, concept)
        if lora is not None:
            self.pipeline.load_lora_weights(lora)
        self.adapters = self.pipeline.get_active_adapters() if concept or lora else []
        self.pipeline.optimize()
        self.pipeline.scheduler = make_scheduler(SAMPLER, self.pipeline.scheduler)
        self.mel = mel_config(self.pipeline.vocoder)
        self.clap = ClapEmbedder(self.pipeline.text_encoder, self.pipeline.feature_extractor)
        self.log_mel = LogMelEmbedder(self.mel)

    def hear(self, waveforms: np.ndarray) -> Heard:
        waveforms = torch.from_numpy(waveforms)
        return Heard(*(embed(waveforms, self.mel.sample_rate) for embed in (self.clap, self.log_mel)))

    def play(self, prompts: list[str], weight: float = 1.0) -> Heard:
        """Prompt i by seed ``FIRST_SEED + i``, in batches of four, with the adapter at ``weight``."""
        if self.adapters:
            self.pipeline.set_adapters(self.adapters, [weight])
        made = [
            self.pipeline(
                prompts[first : first + 4],
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                guidance_interval=GUIDANCE_INTERVAL,
                seed=FIRST_SEED + first,
            ).audios
            for first in range(0, len(prompts), 4)
        ]
        return self.hear(np.concatenate(made))

    def recordings(self, folder: Path) -> Heard:
        clips = load_clips(folder, self.mel.clip_s)
        return self.hear(np.stack([read_clip(clip, self.mel.sample_rate, self.mel.clip_samples) for clip in clips]))

    def texts(self, prompts: list[str]) -> np.ndarray:
        with torch.no_grad():
            return self.pipeline.embed_texts(prompts).float().numpy()


def nearness(played: Heard, reference: Heard) -> dict[str, float]:
    """How near a set of clips is to the reference: similarity to be high, distances low."""
    centre = reference.log_mel.mean(axis=0)
    return {
        "clap_similarity": float((played.clap @ reference.clap.T).mean()),
        "log_mel_distance": float(np.sqrt(np.square(played.log_mel - centre).mean(axis=1)).mean()),
        "kid_log_mel": kernel_distance(played.log_mel, reference.log_mel),
    }


def change(before: Heard, after: Heard, reference: Heard) -> dict[str, dict]:
    """Differences of the clips of equal seeds, with 95 % intervals over seeds: similarity and log-mel distance."""
    centre = reference.log_mel.mean(axis=0)
    similarity = [(side.clap @ reference.clap.T).mean(axis=1) for side in (before, after)]
    distance = [np.sqrt(np.square(side.log_mel - centre).mean(axis=1)) for side in (before, after)]
    return {
        name: bootstrap(np.mean, values[1] - values[0])._asdict()
        for name, values in (("clap_similarity", similarity), ("log_mel_distance", distance))
    }


def staying(before: Heard, after: Heard, reference: Heard, wanted: np.ndarray) -> dict[str, dict]:
    """Of unrelated prompts: similarity to the reference and to the prompt, and to what was played before."""
    to_prompt = {
        name: float((side.clap * wanted).sum(1).mean()) for name, side in (("before", before), ("after", after))
    }
    same = np.sqrt(np.square(after.log_mel - before.log_mel).mean(axis=1))
    return {
        "to_reference": {"before": nearness(before, reference), "after": nearness(after, reference)},
        "to_reference_change": change(before, after, reference),
        "clap_similarity_to_the_prompt": to_prompt,
        "clap_similarity_to_before": float((before.clap * after.clap).sum(1).mean()),
        "log_mel_distance_to_before": float(same.mean()),
    }


def collect(recordings: Path, names: tuple[str, ...], folder: Path, captions: dict[str, str]) -> Path:
    """A folder with copies of ``names`` and a table of their captions, if there are any."""
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(recordings / name, folder / name)
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        writer.writerows([name, captions.get(name, "")] for name in names)
    return folder


def learn_concept(name: str, arguments: argparse.Namespace, work: Path, before: dict[str, Heard]) -> dict:
    """Learn a concept, and measure it."""
    files, caption = CONCEPTS[name]
    folder = collect(arguments.recordings, files, work / name, {})
    since, processor = time.monotonic(), time.process_time()
    overrides = [f"init={arguments.model}", f"name=<{name}>", *precision(), "trackers=[]", *arguments.overrides]
    final = run("concept", "mini", folder, work / f"run-{name}", overrides=overrides)
    took = {"clock_s": time.monotonic() - since, "processor_s": time.process_time() - processor}
    player, n, word = Player(arguments.model, concept=final), arguments.clips, f"<{name}>"
    reference = player.recordings(folder)
    after, unrelated = player.play([word] * n), player.play(prompts(n))
    sets = {
        "before": before["word"],
        "caption": player.play([caption] * n, 0.0),
        "word_without_adapter": player.play([word] * n, 0.0),
        "after": after,
        "after, with strings": player.play([f"{word}, with strings"] * n),
        "reference_itself": reference,
    }
    return {
        "recordings": files,
        "clips": len(reference.clap),
        "training": took,
        "played": {set_name: nearness(heard, reference) for set_name, heard in sets.items()},
        "change": change(before["word"], after, reference),
        "unrelated": staying(before["unrelated"], unrelated, reference, player.texts(prompts(n))),
    }


def learn_adapter(name: str, arguments: argparse.Namespace, work: Path, before: dict[str, Heard]) -> dict:
    """Train an adapter on the recordings of one kind under their caption, and measure it."""
    files, caption = CONCEPTS[name]
    folder = collect(arguments.recordings, files, work / f"lora-{name}", dict.fromkeys(files, caption))
    since, processor = time.monotonic(), time.process_time()
    overrides = [f"init={arguments.model}", *precision(), "trackers=[]", "validation_prompts=[waltz]"]
    final = run("diffusion", "lora", folder, work / f"run-lora-{name}", overrides=[*overrides, *arguments.overrides])
    took = {"clock_s": time.monotonic() - since, "processor_s": time.process_time() - processor}
    player, n = Player(arguments.model, lora=final), arguments.clips
    reference = player.recordings(folder)
    described, after = player.play([caption] * n, 0.0), player.play([caption] * n)
    unrelated = player.play(prompts(n))
    sets = {"before": described, "after": after, "reference_itself": reference}
    return {
        "recordings": files,
        "clips": len(reference.clap),
        "training": took,
        "played": {set_name: nearness(heard, reference) for set_name, heard in sets.items()},
        "change": change(described, after, reference),
        "unrelated": staying(before["unrelated"], unrelated, reference, player.texts(prompts(n))),
    }


def prompts(count: int) -> list[str]:
    return [UNRELATED[i % len(UNRELATED)] for i in range(count)]


def precision() -> list[str]:
    """bfloat16 where the processor has it."""
    return ["mixed_precision=bf16"] if computes_bfloat16() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--clips", type=int, default=6, help="played for each set")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="of the parts; all by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", help="changes to the configurations, such as steps=20")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    player = Player(arguments.model)
    add_word(player.pipeline.text_encoder, player.pipeline.tokenizer, "<new>")  # as every concept begins
    before = {"word": player.play(["<new>"] * arguments.clips), "unrelated": player.play(prompts(arguments.clips))}
    settings = {key: getattr(arguments, key) for key in ("model", "clips", "threads", "overrides")}
    settings |= {"scheduler": SAMPLER, "steps": STEPS, "guidance": GUIDANCE, "guidance_interval": GUIDANCE_INTERVAL}
    settings["revision"] = model_revision(find_folder(arguments.model, MusicLDMPipeline.download))
    with tempfile.TemporaryDirectory() as work:
        for part in arguments.only or PARTS:
            learn = learn_adapter if part.startswith(ADAPTER) else learn_concept
            result = {"settings": settings, **learn(part.removeprefix(ADAPTER), arguments, Path(work), before)}
            rows = result["played"]
            print(part, *(f"{name} {row['clap_similarity']:.3f}" for name, row in rows.items()), sep="\n  ", flush=True)
            if arguments.out:
                keep(arguments.out, {part: result})


if __name__ == "__main__":
    main()
