"""A whole evaluation: generate or read clips, measure everything there is data for, write the report.

prompts or recordings -> clips -> embeddings, measurements, verdicts -> metrics.json, report.html, report.md
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from musicldm.analysis.embedders import LogMelEmbedder
from musicldm.audio import read_audio, write_whole
from musicldm.evaluate.collect import Clip, begin, embed_clips, folder_clips, generate_clips, measure_clips
from musicldm.evaluate.families import ZeroShotFamilies
from musicldm.evaluate.probe import FamilyProbe
from musicldm.evaluate.report import guidance_words, markdown, page
from musicldm.evaluate.similarity import paired_similarity
from musicldm.evaluate.summary import Judged, few_clips, summarize
from musicldm.generate.environment import package_versions
from musicldm.models.clap import embed_text
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.sampling.schedulers import GUIDANCE, GUIDANCE_INTERVAL, STEPS


def run_evaluation(
    pipeline,
    out: Path,
    about: dict,
    *,
    prompts: list[str] | None = None,
    audio: Path | None = None,
    pairs: list[Clip] | None = None,
    reference: Path | None = None,
    index: Path | None = None,
    probe: Path | None = None,
    cache: Path | None = None,
    most: int | None = None,
    seed: int = 0,
    seconds: float | None = None,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    guidance_interval: Sequence[float] = GUIDANCE_INTERVAL,
    batch_size: int = 4,
    tempo: bool = True,
) -> dict:
    """Evaluate what ``pipeline`` makes of ``prompts``, or the recordings in ``audio``, into the folder ``out``.

    ``about`` names the model (model, revision, scheduler). ``pairs`` are the recordings that the prompts describe, one
    for each. Of recordings and reference the first ``most`` are used. ``probe`` is a folder of solo renderings that
    teach a `FamilyProbe`, which then is the classifier; without one CLAP is. ``cache`` keeps what is computed of
    reference, pairs and probe, for other evaluations. Returns what metrics.json holds. A run that was stopped goes on
    when it is called again.

    Raises:
        ValueError: for fewer than two clips that sound, pairs that are not one for each prompt, an index of another
            CLAP, or another evaluation in ``out``.
        OSError: if something cannot be read or written.
    """
    embedder = ClapEmbedder(pipeline.text_encoder, pipeline.feature_extractor, pipeline.sampling_rate)
    log_mel = LogMelEmbedder()
    settings = {
        **about,
        "audio": None if audio is None else str(audio.resolve()),
        "prompts": prompts,
        "most": most,
        "seed": seed,
        "seconds": seconds,
        "steps": steps,
        "guidance": guidance,
        "guidance_interval": list(guidance_interval),
        "tempo": tempo,
    }
    if pairs is not None and len(pairs) != len(prompts or ()):
        raise ValueError(f"{len(pairs)} recordings do not pair with {len(prompts or ())} prompts; give one for each")
    collection = None
    if index is not None:
        from musicldm.novelty.index import NoveltyIndex

        collection = NoveltyIndex(index)
        collection.check_embedder(embedder.name)
    clips = None if audio is None else folder_clips(audio, most)
    recordings = None if reference is None else folder_clips(reference, most)
    if probe is not None:
        folder_clips(probe)
    n_clips = len(prompts) if clips is None else len(clips)
    if recordings is not None and min(n_clips, len(recordings)) < 4:
        raise ValueError(f"distances need four clips or more on either side, got {n_clips} and {len(recordings)}")
    if collection is not None:
        check_lengths(clips, seconds)
    begin(out, settings)

    if clips is None:
        pipeline.set_progress_bar_config(disable=True)  # there is one over all batches
        options = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "guidance_interval": tuple(guidance_interval),
            "audio_length_in_s": seconds,
        }
        recipe = {"generated_by": "AI (musicldm)", **about, "versions": package_versions()}
        recipe |= {name: settings[name] for name in ("steps", "guidance", "guidance_interval")}
        clips = generate_clips(pipeline, prompts, out, seed, batch_size, recipe, **options)
    rate = pipeline.sampling_rate
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    in_clap, heard = embed_clips(clips, embedder, rate)
    if pairs is not None:
        pairs = [pair for pair, sounds in zip(pairs, heard, strict=True) if sounds]
    clips = [clip for clip, sounds in zip(clips, heard, strict=True) if sounds]
    in_log_mel = embed_clips(clips, log_mel, rate)[0]
    real = None
    if recordings is not None:
        real = tuple(embed_clips(recordings, each, rate, cache)[0] for each in (embedder, log_mel))
    judged = judge_families(pipeline.tokenizer, embedder, clips, in_clap, pairs, rate, probe, cache)

    tracked = tempo and find_spec("madmom") is not None
    measured = measure_clips(clips, out, tracked)
    texts = [clip.prompt for clip in clips]
    text_similarity = None
    if all(texts) and pipeline.tokenizer is not None:
        with torch.no_grad():
            wanted = embed_text(pipeline.text_encoder, pipeline.tokenizer, texts).float().cpu().numpy()
        text_similarity = paired_similarity(wanted, in_clap)
    verdicts = None if collection is None else check_clips(clips, collection, embedder)
    base_rate = None if collection is None else collection.about["base_rate"]
    metrics, single = summarize(
        in_clap, in_log_mel, text_similarity, texts, measured, real, verdicts, base_rate, judged
    )

    notes = few_clips(
        len(clips),
        None if real is None else len(real[0]),
        {"CLAP": in_clap.shape[1], "log-mel statistics": in_log_mel.shape[1]},
    )
    if judged:
        notes.append(classifier_note(judged, probe))
    if not heard.all():
        notes.append(f"{np.sum(~heard)} of {len(heard)} clips are silent and were left out.")
    if any(texts) and not all(texts):
        notes.append(
            f"{texts.count(None)} of {len(texts)} clips have no caption: similarity of text and audio is left out."
        )
    if not tracked:
        notes.append("Tempo was not measured: it was left out, or madmom, which it needs, is missing (make beats).")
    sources = {"CLAP": embedder.name, "reference": None, "index": None, "classifier": None, "probe": None}
    if recordings is not None:
        files = [[clip.path.name, clip.path.stat().st_size] for clip in recordings]
        sources["reference"] = f"{reference.name}-{hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]}"
    if collection is not None:
        sources["index"] = collection.fingerprint
    for kind, one in judged.items():
        sources["classifier"] = sources["classifier"] or one.name
        sources["probe"] = one.name if kind == "probe" else sources["probe"]
    made = {
        "title": f"Evaluation of {about['model'] if audio is None else audio}",
        "about": _about(len(clips), settings),
        "settings": settings,
        "sources": sources,
        "metrics": metrics,
        "notes": notes,
        "base_rate": base_rate,
        "prompts": texts,
        "single": single,
        "clips": _rows(clips, out, measured, single, verdicts),
    }
    write_whole(out / "metrics.json", (json.dumps(made, indent=1) + "\n").encode())
    write_whole(out / "report.md", markdown(made).encode())
    write_whole(out / "report.html", page(made, out).encode())
    return made


def judge_families(
    tokenizer,
    embedder: ClapEmbedder,
    clips: list[Clip],
    in_clap: np.ndarray,
    pairs: list[Clip] | None,
    rate: int,
    probe: Path | None,
    cache: Path | None,
) -> dict[str, Judged]:
    """What CLAP (``zero_shot``) and the probe that learns from the folder ``probe`` hear in clips and their pairs."""
    judged = {}
    if probe is not None:
        judge = FamilyProbe.train(probe, cache=cache)
        ours = embed_clips(clips, judge, rate)[0]
        theirs = (None, None) if pairs is None else embed_clips(pairs, judge, rate, cache)
        judged["probe"] = Judged(judge.classes, ours, *theirs, judge.name)
    if tokenizer is not None:
        judge = ZeroShotFamilies(embedder, tokenizer, *(one.classes for one in judged.values()))
        theirs = (None, None) if pairs is None else embed_clips(pairs, judge, rate, cache)
        judged["zero_shot"] = Judged(judge.classes, judge.of_embeddings(in_clap), *theirs, judge.name)
    return judged


def classifier_note(judged: dict[str, Judged], probe: Path | None) -> str:
    """Whose probabilities the inception score and the divergence come from."""
    kind, one = next(iter(judged.items()))
    judge = f"a probe trained on {probe.name}" if kind == "probe" else "the model's own CLAP, without training"
    return f"Inception score and divergence are of {len(one.classes)} families of instruments, told apart by {judge}."


def check_lengths(clips: list[Clip] | None, seconds: float | None) -> None:
    """ValueError if a recording, or what is to be generated, is too short to be compared with an index."""
    from musicldm.novelty.alignment import WINDOWS_S

    if clips is None and seconds is not None and seconds < WINDOWS_S[0]:
        raise ValueError(f"{seconds:g} s are too short to compare with an index; ask for {WINDOWS_S[0]:g} s or more")
    for clip in clips or ():
        if (duration_s := soundfile.info(clip.path).duration) < WINDOWS_S[0]:
            raise ValueError(
                f"{clip.path}, of {duration_s:.2f} s, is too short to compare with an index; "
                f"remove recordings of less than {WINDOWS_S[0]:g} s, or leave out --index"
            )


def check_clips(clips: list[Clip], index, embedder: ClapEmbedder) -> list[dict]:
    """The verdict on each clip, as `musicldm.novelty.check.record` gives it."""
    from musicldm.novelty.check import check, record

    found = []
    for clip in tqdm(clips, desc="compare with the training set", unit="clip", disable=None):
        waveform, rate = read_audio(clip.path, embedder.feature_extractor.sampling_rate)
        try:
            found.append(record(clip.path.name, check(waveform, rate, index, embedder), index))
        except ValueError as error:
            raise ValueError(f"{clip.path}: {error}") from error
    return found


def _about(count: int, settings: dict) -> str:
    model = f"{settings['model']}, revision {settings['revision']}"
    if settings["audio"] is not None:
        return f"{count} recordings, heard by the CLAP of {model}."
    return (
        f"{count} clips; model {model}; seed {settings['seed']}, {settings['steps']} steps of {settings['scheduler']}, "
        f"{guidance_words(settings)}."
    )


def _rows(clips: list[Clip], out: Path, measured: list[dict], single: dict, verdicts: list[dict] | None) -> list[dict]:
    rows = []
    for i, clip in enumerate(clips):
        inside = clip.path.is_relative_to(out)
        path = clip.path.relative_to(out) if inside else clip.path.resolve()
        row = {"file": str(path), "prompt": clip.prompt, "seed": clip.seed, **measured[i]}
        row |= {name: values[i] for name, values in single.items()}
        rows.append(row | {"novelty": None if verdicts is None else verdicts[i]})
    return rows
