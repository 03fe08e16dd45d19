"""The copy guard: outputs of a pipeline are compared with the training set, and drawn again if they are too similar.

waveforms (B, L) -> check against the index -> accepted draws, best first
                 -> new noise, steered away from the latents of rejected draws -> check -> ... | CopyError
                    (steering is halved after it left a hum)
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from musicldm.analysis.waveforms import SILENCE
from musicldm.audio.reading import HIGHEST_RATE, LOWEST_RATE
from musicldm.config.values import check_kind, check_number, check_whole, shown
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.novelty import CopyError
from musicldm.novelty.alignment import WINDOWS_S
from musicldm.novelty.carried import index_of
from musicldm.novelty.check import check, record
from musicldm.novelty.index import NoveltyIndex
from musicldm.novelty.steering import FLOOR_DB, Steering, is_hum, movement_db
from musicldm.pipelines.base import MusicLDMPipelineOutput
from musicldm.pipelines.calls import taking_turns
from musicldm.pipelines.checks import as_embeds, check_texts
from musicldm.pipelines.contexts import one_each
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.denoising import Correct, make_generators
from vocoder import mel_config

MODES = ("report", "avoid", "least_similar")
ROUNDS = 4  # limit of draws for a prompt
STRENGTH = 0.5  # of steering in the second draw; measured in benchmarks/NOTES_novelty.md
PER_PROMPT = ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")


class CheckedDraw(NamedTuple):
    """A candidate and the result of its check."""

    waveform: np.ndarray  # (L,)
    score: float | None  # similarity to the prompt, if candidates were ranked
    found: dict  # of `CopyGuard.judge`, with ``steering`` (the strength) and ``hum``

    @property
    def new(self) -> bool:
        return not self.found["too_close"] and not self.found["hum"]


class CopyGuard:
    """Wraps a pipeline, compares its outputs with a training set, and is called like the pipeline.

    Args:
        pipeline: with the CLAP that the index was made with.
        index: a `NoveltyIndex`, or its folder; by default the index that the model carries.
        strength: of steering away from rejected draws. It is halved after a draw that was a hum; 0 draws again without
            steering.

    Raises:
        FileNotFoundError: if there is no index in the folder.
        ValueError: if the index is damaged or of another CLAP, the model carries none, or the strength is not a finite
            number of at least 0.
        OSError: if the model's hub refuses the download of the index.
    """

    def __init__(
        self, pipeline: MusicLDMPipeline, index: NoveltyIndex | str | Path | None = None, strength: float = STRENGTH
    ):
        check_kind("pipeline", pipeline, MusicLDMPipeline, "a MusicLDMPipeline")
        check_kind("index", index, (NoveltyIndex, str, Path, type(None)), "a NoveltyIndex, its folder, or None")
        check_number("strength", strength, least=0)
        if index is None and (index := index_of(pipeline)) is None:
            raise ValueError(
                "the copy guard needs an index of the training set, and the model carries none; give the folder of one "
                "that `musicldm novelty index` wrote (on the command line: --index FOLDER)"
            )
        self.pipeline, self.strength = pipeline, strength
        self.index = index if isinstance(index, NoveltyIndex) else NoveltyIndex(index)
        self.embedder = ClapEmbedder(pipeline.text_encoder, pipeline.feature_extractor, pipeline.sampling_rate)
        self.index.check_embedder(self.embedder.name)

    def judge(self, waveform: np.ndarray, sample_rate: int, max_similarity: float | None = None) -> dict:
        """The result of `musicldm.novelty.check` for ``waveform`` (L,) or (A, L), with two more entries.

        ``movement_db`` comes from `musicldm.novelty.steering`. ``too_close`` is true for a copied passage, or a
        similarity to some clip above ``max_similarity``. By default that is the similarity that 1 % of other music
        exceeds, and the same applies to windows of 2 s.

        Raises:
            ValueError: if the waveform has another shape, is empty or not finite, or the rate is wrong.
        """
        _check_similarity(max_similarity)
        check_whole("sample_rate", sample_rate, LOWEST_RATE, HIGHEST_RATE)
        waveform = waveform.detach().cpu().numpy() if isinstance(waveform, torch.Tensor) else np.asarray(waveform)
        if waveform.dtype.kind != "f" or waveform.ndim not in (1, 2) or not waveform.size:
            raise ValueError(
                f"waveform must be floats (L,) or (A, L), at least one sample, got {waveform.dtype} {waveform.shape}"
            )
        if not np.isfinite(waveform).all():
            raise ValueError("waveform holds NaN or infinity; give finite samples")
        waveform = waveform if waveform.ndim == 1 else waveform.mean(axis=0)
        most = self.index.similarity_threshold if max_similarity is None else max_similarity
        if np.abs(waveform).max(initial=0) < SILENCE:
            silent = {"verdict": "silent", "similarity": None, "nearest": [], "movement_db": 0.0}
            return silent | {"max_similarity": most, "too_close": False}
        found = check(waveform, sample_rate, self.index, self.embedder)
        about = record("", found, self.index)
        del about["file"]
        too_close = found.verdict == "copy" or found.similarity > most
        if max_similarity is None and found.window is not None:
            too_close |= found.window[0].similarity > self.index.window_threshold
        about["movement_db"] = movement_db(waveform, sample_rate)
        return about | {"max_similarity": most, "too_close": too_close}

    def __call__(
        self, *args, mode: str = "avoid", max_similarity: float | None = None, **options
    ) -> MusicLDMPipelineOutput | tuple:
        """The pipeline's output for the same arguments, with an additional field ``novelty``.

        ``novelty`` has for each waveform the result of `judge`, the number of draws of its prompt, the strength of its
        ``steering``, and whether it is a ``hum`` (`steering.is_hum`).

        Mode "report" only compares. Mode "avoid" draws all candidates of a prompt again, steered away from rejected
        draws, up to `ROUNDS` times in all, until enough of them are neither too close nor hums; the best are returned.
        Mode "least_similar" does the same, but where "avoid" raises it returns hums, and then the least similar draws.

        Raises:
            ValueError: for an unknown mode, or arguments with which nothing can be compared or drawn again.
            CopyError: (a ValueError) if too few draws of a prompt are accepted.
        """
        call = inspect.signature(self.pipeline.__call__).bind(*args, **options)
        call.apply_defaults()
        arguments = call.arguments
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            arguments[name] = as_embeds(name, arguments[name])
        _check(mode, max_similarity, arguments)
        wanted = arguments["return_best"] or arguments["num_waveforms_per_prompt"]
        with taking_turns(self.pipeline):
            drawn, waiting, output = self._draw(mode, max_similarity, wanted, arguments)
        chosen = [choose(candidates, wanted, mode) for candidates in drawn]
        output.audios = np.stack([one.waveform for row in chosen for one in row])
        if output.scores is not None:
            output.scores = np.array([[one.score for one in row] for row in chosen], np.float32)
        output.novelty = [one.found | {"draws": len(drawn[i])} for i, row in enumerate(chosen) for one in row]
        if arguments["output_type"] == "pt":
            output.audios = torch.from_numpy(output.audios)
            output.scores = None if output.scores is None else torch.from_numpy(output.scores)
        if mode == "avoid" and waiting:
            prompts = [arguments["prompt"]] if isinstance(arguments["prompt"], str) else arguments["prompt"]
            names = [f"prompt {i + 1}" if prompts is None else shown(prompts[i]) for i in waiting]
            raise CopyError(refusal(names, [drawn[i] for i in waiting]), output, tuple(waiting))
        return output if arguments["return_dict"] else (output.audios,)

    def _draw(
        self, mode: str, max_similarity: float | None, wanted: int, arguments: dict
    ) -> tuple[list[list[CheckedDraw]], list[int], MusicLDMPipelineOutput]:
        """The draws of each prompt, the prompts with fewer than ``wanted`` new ones, and the last output."""
        n = arguments["num_waveforms_per_prompt"]
        n_prompts = check_texts(*(arguments[name] for name in PER_PROMPT))
        noise = make_generators(arguments["seed"], arguments["generator"], n_prompts * n)
        drawn: list[list[CheckedDraw]] = [[] for _ in range(n_prompts)]
        waiting = list(range(n_prompts))
        rejected: list[list[torch.Tensor]] = [[] for _ in range(n_prompts)]  # latents (C, T, F)
        strengths = [self.strength] * n_prompts
        contexts = None if arguments["context"] is None else one_each(arguments["context"], n_prompts)
        settled = {"seed": None, "return_best": None, "return_dict": True, "output_type": "np"}
        for _ in range(1 if mode == "report" else ROUNDS):
            changed = {name: _rows(arguments[name], waiting) for name in PER_PROMPT}
            items = [i * n + k for i in waiting for k in range(n)]
            changed["context"] = contexts if contexts is None else _rows(contexts, waiting)
            changed["generator"] = [noise[item] for item in items] if isinstance(noise, list) else noise
            away = [rejected[item // n] for item in items]
            strong = [strengths[item // n] if patterns else 0.0 for item, patterns in zip(items, away, strict=True)]
            changed["correct"] = self._steering(away, strong, arguments["correct"])
            output = self.pipeline(**arguments | changed | settled)
            settled["audio_length_in_s"] = output.audios.shape[-1] / output.sampling_rate  # also of fewer contexts
            for row, item in enumerate(items):
                waveform, prompt = output.audios[row], item // n
                found = self.judge(waveform, output.sampling_rate, max_similarity)
                score = None if output.scores is None else float(output.scores[row // n, row % n])
                found |= {"steering": strong[row], "hum": strong[row] > 0 and _left_a_hum(found, drawn[prompt])}
                drawn[prompt].append(CheckedDraw(waveform, score, found))
                if found["too_close"] and mode != "report":
                    rejected[prompt].append(self.pipeline.encode_audio(waveform[None], output.sampling_rate)[0])
            for prompt in waiting:
                if any(one.found["hum"] for one in drawn[prompt][-n:]):
                    strengths[prompt] /= 2
            waiting = [prompt for prompt in waiting if sum(one.new for one in drawn[prompt]) < wanted]
            if not waiting:
                break
        return drawn, waiting, output

    def _steering(
        self, rejected: list[list[torch.Tensor]], strengths: list[float], correct: Correct | None
    ) -> Correct | None:
        """A correction that steers each item away from its ``rejected`` latents, after the caller's own ``correct``."""
        if not any(strengths):
            return correct
        pipeline, mel = self.pipeline, mel_config(self.pipeline.vocoder)
        frame_s = mel.hop_length * pipeline.vae_scale_factor / mel.sample_rate
        steering = Steering(pipeline.scheduler, max(1, round(WINDOWS_S[0] / frame_s)), strengths, rejected)
        if correct is None:
            return steering
        return lambda prediction, noisy, t: steering(correct(prediction, noisy, t), noisy, t)


def _check(mode: str, max_similarity: float | None, arguments: dict) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {shown(mode)}")
    _check_similarity(max_similarity)
    check_whole("num_waveforms_per_prompt", arguments["num_waveforms_per_prompt"])
    if arguments["return_best"] is not None:
        check_whole("return_best", arguments["return_best"], 1, arguments["num_waveforms_per_prompt"])
    if arguments["output_type"] == "latent":
        raise ValueError("latents cannot be compared with the training set; ask for waveforms, or call the pipeline")
    if mode != "report" and arguments["latents"] is not None:
        raise ValueError(f"mode={mode!r} draws new noise, so latents cannot be given; give a seed, or use 'report'")
    seconds = arguments["audio_length_in_s"]
    if seconds is not None:
        check_number("audio_length_in_s", seconds)
    if seconds is not None and seconds < WINDOWS_S[0]:
        raise ValueError(f"{seconds:g} s are too short to compare with the training set; ask for {WINDOWS_S[0]:g} s")


def _check_similarity(most: float | None) -> None:
    if most is not None:
        check_number("max_similarity", most)
        if not -1 <= most <= 1:
            raise ValueError(f"max_similarity is a cosine from -1 to 1, got {most}")


def _rows(value, rows: list[int]):
    """The entries ``rows`` of ``value``, if it has one for each prompt; otherwise ``value``."""
    if isinstance(value, list):
        return [value[row] for row in rows]
    return value[rows] if isinstance(value, torch.Tensor) else value


def _left_a_hum(found: dict, before: list[CheckedDraw]) -> bool:
    """Whether a draw that was steered away from the draws ``before`` is a hum."""
    unsteered = [one.found["movement_db"] for one in before if one.found["too_close"] and not one.found["steering"]]
    return not found["too_close"] and is_hum(found["movement_db"], unsteered)


def choose(candidates: list[CheckedDraw], wanted: int, mode: str) -> list[CheckedDraw]:
    """The ``wanted`` best candidates: accepted ones first, then hums with most movement, then the least similar."""

    def best(drawn: CheckedDraw) -> float:
        return 0.0 if drawn.score is None else -drawn.score

    if mode == "report":
        return candidates[:wanted]
    new = sorted((one for one in candidates if one.new), key=best)
    hums = sorted((one for one in candidates if one.found["hum"]), key=lambda one: -one.found["movement_db"])
    close = [one for one in candidates if one.found["too_close"]]
    return (new + hums + sorted(close, key=closeness))[:wanted]


def closeness(drawn: CheckedDraw) -> tuple[bool, float]:
    """Sort key of draws that are too similar to the training set, the least similar first."""
    return drawn.found["verdict"] == "copy", drawn.found["similarity"]


def refusal(names: list[str], drawn: list[list[CheckedDraw]]) -> str:
    """Error message for prompts, by name, with too few accepted draws."""
    parts = []
    for name, candidates in zip(names, drawn, strict=True):
        found = min((one for one in candidates if one.found["too_close"]), key=closeness).found
        near, window = found["nearest"][0], None
        if found["verdict"] == "copy":
            near = found["passage"]
        elif found["similarity"] <= found["max_similarity"]:
            near = window = found["window"]
        recording = f"{near['recording']} ({near['title']})" if near.get("title") else near["recording"]
        why = f"similarity {found['similarity']:.3f}, at most {found['max_similarity']:.3f}"
        if found["verdict"] == "copy":
            why += f"; passage score {near['score']:.2f}, at most {near['threshold']:.2f}"
        if window is not None:
            why += f"; that of 2 s {window['similarity']:.3f}, at most {window['threshold']:.3f}"
        parts.append(f"{name}: {recording} at {near['start_s']:.1f} s ({why})")
        if hums := [one.found["movement_db"] for one in candidates if one.found["hum"]]:
            parts[-1] += (
                f"; steering left no music but a hum in {len(hums)} of its draws (levels move by {max(hums):.1f} dB, "
                f"those of music by {FLOOR_DB:g} dB or more)"
            )
    return (
        f"after {len(drawn[0])} draws too few are new; the least near of the others, {'; '.join(parts)}. "
        "Change the prompt or the seed, allow more with max_similarity, or ask for least_similar"
    )
