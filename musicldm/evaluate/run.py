"""A whole evaluation: generate or read clips, compute every measure that the data allow, and write the report.

prompts or recordings -> clips -> embeddings, measurements, verdicts -> metrics.json, report.html, report.md
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from musicldm.analysis.embedders import LogMelEmbedder
from musicldm.audio import read_audio
from musicldm.audio.output import sole_writer, write_whole
from musicldm.audio.reading import content_mark, open_audio
from musicldm.evaluate.collect import Clip, begin, embed_clips, folder_clips, generate_clips, measure_clips
from musicldm.evaluate.families import ZeroShotFamilies
from musicldm.evaluate.probe import FamilyProbe
from musicldm.evaluate.report import guidance_words, markdown, page
from musicldm.evaluate.similarity import paired_similarity
from musicldm.evaluate.summary import Classification, Evidence, few_clips, summarize
from musicldm.generate.recipe import Request, Settings
from musicldm.generate.session import Session
from musicldm.models.clap import embed_text
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.novelty.alignment import WINDOWS_S
from musicldm.novelty.check import check, record
from musicldm.novelty.index import NoveltyIndex


@dataclass(frozen=True)
class Judges:
    """References and classifiers of an evaluation, besides the model's own CLAP."""

    reference: Path | None = None  # folder of real music, for distances
    index: Path | None = None  # folder that `musicldm novelty index` wrote
    probe: Path | None = None  # folder of solo renderings to train a `FamilyProbe` on; without, CLAP is the classifier
    cache: Path | None = None  # folder that keeps embeddings of reference, pairs and probe for other evaluations
    tempo: bool = True  # track beats, which is the slowest measure


@dataclass(frozen=True)
class EvaluationConfig:
    """What to evaluate: a model's music for ``prompts``, with the seed ``seed + i`` for prompt i, or recordings.

    Raises:
        ValueError: if ``pairs`` are not one for each prompt.
    """

    prompts: list[str] | None = None
    audio: Path | None = None  # folder of recordings to evaluate instead
    pairs: list[Clip] | None = None  # the recordings that the prompts describe, one for each
    most: int | None = None  # limit for the number of recordings and of reference clips
    seed: int = 0
    settings: Settings = field(default_factory=Settings)
    batch_size: int = 4  # clips generated at a time
    judges: Judges = Judges()

    def __post_init__(self):
        if self.pairs is not None and len(self.pairs) != len(self.prompts or ()):
            n_prompts = len(self.prompts or ())
            raise ValueError(f"{len(self.pairs)} recordings do not pair with {n_prompts} prompts; give one for each")

    def requests(self) -> list[Request]:
        """Requests for the clips to generate."""
        return Request.for_prompts(self.prompts or (), self.seed, **vars(self.settings))

    def plan(self, session: Session) -> dict:
        """Contents of ``settings.json``: everything that the clips and their measures depend on."""
        settings = self.settings
        about = {"model": session.model, "revision": session.revision, "scheduler": settings.scheduler}
        if adapters := session.about(settings)["adapters"]:
            for name in ("lora", "concept"):
                folders = getattr(settings, name)
                about[name] = None if folders is None else list(folders)
            about["adapters"] = adapters
        return {
            **about,
            "audio": None if self.audio is None else str(self.audio.resolve()),
            "prompts": self.prompts,
            "most": self.most,
            "seed": self.seed,
            "seconds": settings.seconds,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "guidance_interval": list(settings.guidance_interval),
            "tempo": self.judges.tempo,
        }


class Inputs(NamedTuple):
    """Inputs of an evaluation, opened and checked before any music is made."""

    embedder: ClapEmbedder  # of the model
    tokenizer: object | None
    rate: int  # of the model, in Hz
    clips: list[Clip] | None  # recordings to evaluate; None where clips are generated
    reference: list[Clip] | None
    index: NoveltyIndex | None


class EmbeddedClips(NamedTuple):
    """The N clips that are not silent, with embeddings and classifications."""

    clips: list[Clip]
    clap: np.ndarray  # (N, D)
    log_mel: np.ndarray  # (N, E)
    sounds: np.ndarray  # mask of these clips among all clips
    reference: tuple[np.ndarray, np.ndarray] | None  # (M, D) and (M, E)
    classified: dict[str, Classification]


def run_evaluation(session: Session, out: Path, config: EvaluationConfig) -> dict:
    """Evaluate music of ``session``, or recordings; write the folder ``out`` and return the contents of metrics.json.

    A stopped run continues when it is called again.

    Raises:
        ValueError: if fewer than two clips are not silent, the index is of another CLAP, or ``out`` holds another
            evaluation.
        OSError: if a file cannot be read or written or is of other origin, or another process works in ``out``.
    """
    inputs, settings = open_all(session, config), config.plan(session)
    with sole_writer(out, "evaluate"):
        begin(out, settings)
        return measure_and_report(session, inputs, settings, out, config)


def measure_and_report(session: Session, inputs: Inputs, settings: dict, out: Path, config: EvaluationConfig) -> dict:
    """The part of `run_evaluation` that works in the folder ``out``, once it is reserved."""
    clips = inputs.clips
    if clips is None:
        clips = generate_clips(session, config.requests(), out, config.batch_size)
    embedded = embed_all(clips, inputs, config)
    tracked = config.judges.tempo and find_spec("madmom") is not None
    measured = measure_clips(embedded.clips, out, tracked)
    verdicts = None if inputs.index is None else check_clips(embedded.clips, inputs.index, inputs.embedder)
    texts = [clip.prompt for clip in embedded.clips]
    evidence = Evidence(
        embedded.clap,
        embedded.log_mel,
        texts,
        measured,
        text_similarity=similarity_to_prompts(texts, embedded.clap, inputs),
        reference=embedded.reference,
        verdicts=verdicts,
        base_rate=None if inputs.index is None else inputs.index.about["base_rate"],
        classified=embedded.classified,
    )
    metrics, single = summarize(evidence)
    made = {
        "title": f"Evaluation of {session.model if config.audio is None else config.audio}",
        "about": _about(len(embedded.clips), settings),
        "settings": settings,
        "sources": sources_of(inputs, embedded, config.judges),
        "metrics": metrics,
        "notes": notes_on(embedded, config.judges, tracked),
        "base_rate": evidence.base_rate,
        "prompts": texts,
        "single": single,
        "clips": _rows(embedded.clips, out, measured, single, verdicts),
    }
    write_whole(out / "metrics.json", (json.dumps(made, indent=1) + "\n").encode())
    write_whole(out / "report.md", markdown(made).encode())
    write_whole(out / "report.html", page(made, out).encode())
    return made


def open_all(session: Session, config: EvaluationConfig) -> Inputs:
    """Open and check all inputs of the evaluation; raises the errors of `run_evaluation`."""
    judges, pipeline = config.judges, session.pipeline(config.settings)
    embedder = ClapEmbedder(pipeline.text_encoder, pipeline.feature_extractor, pipeline.sampling_rate)
    index = None
    if judges.index is not None:
        index = NoveltyIndex(judges.index)
        index.check_embedder(embedder.name)
    clips = None if config.audio is None else folder_clips(config.audio, config.most)
    reference = None if judges.reference is None else folder_clips(judges.reference, config.most)
    if judges.probe is not None:
        folder_clips(judges.probe)
    n_clips = len(config.prompts or ()) if clips is None else len(clips)
    if reference is not None and min(n_clips, len(reference)) < 4:
        raise ValueError(f"distances need four clips or more on either side, got {n_clips} and {len(reference)}")
    if index is not None:
        check_lengths(clips, config.settings.seconds)
    return Inputs(embedder, pipeline.tokenizer, pipeline.sampling_rate, clips, reference, index)


def embed_all(clips: list[Clip], inputs: Inputs, config: EvaluationConfig) -> EmbeddedClips:
    """Embed all clips and the reference, and classify instrument families."""
    cache, rate, log_mel = config.judges.cache, inputs.rate, LogMelEmbedder()
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    in_clap, sounds = embed_clips(clips, inputs.embedder, rate)
    pairs = config.pairs
    if pairs is not None:
        pairs = [pair for pair, yes in zip(pairs, sounds, strict=True) if yes]
    clips = [clip for clip, yes in zip(clips, sounds, strict=True) if yes]
    in_log_mel = embed_clips(clips, log_mel, rate)[0]
    real = None
    if inputs.reference is not None:
        real = tuple(embed_clips(inputs.reference, each, rate, cache)[0] for each in (inputs.embedder, log_mel))
    classified = classify_families(inputs, clips, in_clap, pairs, config.judges)
    return EmbeddedClips(clips, in_clap, in_log_mel, sounds, real, classified)


def classify_families(
    inputs: Inputs, clips: list[Clip], in_clap: np.ndarray, pairs: list[Clip] | None, judges: Judges
) -> dict[str, Classification]:
    """Instrument families of clips and pairs, by CLAP (``zero_shot``) and by the probe (``probe``)."""
    classified = {}

    def of_pairs(judge) -> tuple:
        return (None, None) if pairs is None else embed_clips(pairs, judge, inputs.rate, judges.cache)

    if judges.probe is not None:
        judge = FamilyProbe.train(judges.probe, cache=judges.cache)
        ours = embed_clips(clips, judge, inputs.rate)[0]
        classified["probe"] = Classification(judge.classes, ours, *of_pairs(judge), judge.name)
    if inputs.tokenizer is not None:
        judge = ZeroShotFamilies(inputs.embedder, inputs.tokenizer, *(one.classes for one in classified.values()))
        classified["zero_shot"] = Classification(
            judge.classes, judge.of_embeddings(in_clap), *of_pairs(judge), judge.name
        )
    return classified


def similarity_to_prompts(texts: list[str | None], in_clap: np.ndarray, inputs: Inputs) -> np.ndarray | None:
    """Cosine (N,) of each clip and its prompt; None if a prompt or the tokenizer is missing."""
    if not all(texts) or inputs.tokenizer is None:
        return None
    with torch.no_grad():
        wanted = embed_text(inputs.embedder.clap, inputs.tokenizer, texts).float().cpu().numpy()
    return paired_similarity(wanted, in_clap)


def notes_on(embedded: EmbeddedClips, judges: Judges, tracked: bool) -> list[str]:
    """Notes for the report: limits of the measures."""
    n_reference = None if embedded.reference is None else len(embedded.reference[0])
    widths = {"CLAP": embedded.clap.shape[1], "log-mel statistics": embedded.log_mel.shape[1]}
    notes = few_clips(len(embedded.clips), n_reference, widths)
    if embedded.classified:
        kind, one = next(iter(embedded.classified.items()))
        judge = f"a probe trained on {judges.probe.name}" if kind == "probe" else "the model's own CLAP (zero-shot)"
        notes.append(
            f"Inception score and KL divergence use {len(one.classes)} instrument families, classified by {judge}."
        )
    if not embedded.sounds.all():
        notes.append(f"{np.sum(~embedded.sounds)} of {len(embedded.sounds)} clips are silent and are left out.")
    texts = [clip.prompt for clip in embedded.clips]
    if any(texts) and not all(texts):
        notes.append(f"{texts.count(None)} of {len(texts)} clips have no caption, so CLAP similarity is left out.")
    if not tracked:
        notes.append(
            "Tempo was not measured: it was switched off, or madmom is missing (install it with `make beats`)."
        )
    return notes


def sources_of(inputs: Inputs, embedded: EmbeddedClips, judges: Judges) -> dict[str, str | None]:
    """Identifiers of what the measures depend on besides the music; `musicldm.evaluate.compare` compares them."""
    sources = {"CLAP": inputs.embedder.name, "reference": None, "index": None, "classifier": None, "probe": None}
    if inputs.reference is not None:
        files = [[clip.path.name, clip.path.stat().st_size] for clip in inputs.reference]
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
        sources["reference"] = f"{judges.reference.name}-{digest}"
        marks = [content_mark(clip.path) for clip in inputs.reference]
        sources["reference_content"] = hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:12]
    if inputs.index is not None:
        sources["index"] = inputs.index.fingerprint
    if embedded.classified:
        sources["classifier"] = next(iter(embedded.classified.values())).name
    if "probe" in embedded.classified:
        sources["probe"] = embedded.classified["probe"].name
    return sources


def check_lengths(clips: list[Clip] | None, seconds: float | None) -> None:
    """Raise ValueError if a recording, or the length to generate, is too short for a comparison with an index."""
    if clips is None and seconds is not None and seconds < WINDOWS_S[0]:
        raise ValueError(f"{seconds:g} s are too short to compare with an index; ask for {WINDOWS_S[0]:g} s or more")
    for clip in clips or ():
        with open_audio(clip.path) as audio:
            duration_s = audio.duration_s
        if duration_s < WINDOWS_S[0]:
            raise ValueError(
                f"{clip.path}, of {duration_s:.2f} s, is too short to compare with an index; "
                f"remove recordings of less than {WINDOWS_S[0]:g} s, or leave out --index"
            )


def check_clips(clips: list[Clip], index: NoveltyIndex, embedder: ClapEmbedder) -> list[dict]:
    """The verdict on each clip, in the form of `musicldm.novelty.check.record`."""
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
        return f"{count} recordings, embedded by the CLAP of {model}."
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
