"""Variations and retakes: how near they stay to what they are made of, from all of it to nothing.

piece, noise level -> `MusicLDMAudioToAudioPipeline` -> distances to the piece, similarity to it and to the prompt
prompt, share of a quarter turn of noise -> `MusicLDMPipeline` -> the same, to the music of no turn
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.editing import keep
from benchmarks.editing.edits import Pipelines, options, seed_of
from benchmarks.editing.fitting import chroma, loudness_db
from benchmarks.editing.pieces import Piece
from musicldm.analysis.embedders import LogMelEmbedder
from musicldm.models.clap import embed_audio
from musicldm.sampling.turning import TurnedGenerator
from vocoder import log_mel_spectrogram

AMOUNTS = (0.2, 0.4, 0.6, 0.8, 1.0)  # noise levels of variations, and shares of a retake
SECONDS = 10.24


def varied(piece: Piece, pipelines: Pipelines, folder: Path) -> dict:
    """Variations of the first `SECONDS` of a piece for its prompt; numbers by amount."""
    source = piece.coded[: round(SECONDS * piece.rate)]

    def make(amount: float) -> np.ndarray:
        call = options(seed_of("vary", piece.name)) | {"init_noise_level": amount}
        return pipelines.vary(piece.prompt, source, piece.rate, **call).audios[0]

    return _by_amount(piece, "vary", source, make, pipelines, folder)


def retaken(piece: Piece, pipelines: Pipelines, folder: Path) -> dict:
    """Retakes of music for the piece's prompt; numbers by share."""
    seed = seed_of("retake", piece.name)

    def make(share: float) -> np.ndarray:
        first, other = (torch.Generator().manual_seed(seed + i) for i in range(2))
        call = options(seed) | {"seed": None, "generator": [TurnedGenerator(first, other, share)]}
        return pipelines.text(piece.prompt, audio_length_in_s=SECONDS, **call).audios[0]

    def plain() -> tuple[np.ndarray, dict]:
        return pipelines.text(piece.prompt, audio_length_in_s=SECONDS, **options(seed)).audios[0], {}

    source, _ = keep.sound(folder / f"retake/{piece.name}-0-sound.flac", piece.rate, plain)
    return _by_amount(piece, "retake", source, make, pipelines, folder)


def _by_amount(piece: Piece, kind: str, source: np.ndarray, make, pipelines: Pipelines, folder: Path) -> dict:
    told = {}
    for amount in AMOUNTS:
        name = f"{kind}/{piece.name}-{amount:g}"

        def measure(amount: float = amount, name: str = name) -> dict:
            path = folder / f"{name}-sound.flac"
            waveform, about = keep.sound(path, piece.rate, lambda: (make(amount), {}))
            return about | compared(source, waveform, piece, pipelines)

        told[f"{amount:g}"] = keep.numbers(folder / f"{name}.json", measure)
    return told


@torch.no_grad()
def compared(source: np.ndarray, made: np.ndarray, piece: Piece, pipelines: Pipelines) -> dict:
    """Of two waveforms (L,): log-mel, chroma and loudness distance, CLAP similarity; and of ``made`` to the prompt."""
    n = min(len(source), len(made))
    both = torch.from_numpy(np.stack([source[:n], made[:n]]).astype(np.float32))
    mels = log_mel_spectrogram(both, LogMelEmbedder().mel).clamp(min=-8)  # (2, T, F)
    text = pipelines.text
    heard = embed_audio(text.text_encoder, text.feature_extractor, both, piece.rate)
    prompt = text.embed_texts([piece.prompt])
    return {
        "log_mel_distance": float((mels[0] - mels[1]).abs().mean()),
        "chroma_distance": 1 - float(chroma(source, piece.rate) @ chroma(made, piece.rate)),
        "loudness_distance_db": abs(loudness_db(source) - loudness_db(made)),
        "clap_to_source": float(heard[0] @ heard[1]),
        "clap_to_prompt": float(heard[1] @ prompt[0]),
    }
