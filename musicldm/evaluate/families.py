"""Instrument families: the one that a prompt asks for, and zero-shot classification of clips by CLAP.

    prompt -> `asked_family` -> "strings";  waveforms (B, L) -> `ZeroShotFamilies` -> probabilities (B, K)

`musicldm.evaluate.probe.FamilyProbe` is another classifier, which is independent of the model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from musicldm.models.clap import embed_text
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.scores.general_midi import ORCHESTRATIONS, PROGRAMS
from musicldm.scores.lexicon import PLAYERS, family_of_words

FAMILIES = ("piano", "guitar", "strings", "brass", "winds", "organ", "synth", "drums")
# Sentences for CLAP where "music for NAME" would be misleading.
ASKED_OF_CLAP = {"drums": "music for drums only", "synth": "music for synthesizer", "voices": "music for a choir"}
MORE_WORDS = {"drum": "drums", "drum kit": "drums", "percussion": "drums", "synthesizer": "synth", "woodwind": "winds"}
REFUSED = re.compile(r"\b(?:without|no)\s+(?:any\s+)?[a-z-]+(?:\s+(?:or|and)\s+[a-z-]+)*", re.IGNORECASE)


@functools.cache
def _words() -> tuple[dict[str, str], re.Pattern]:
    """The family of each instrument word, and a pattern that finds these words, longer ones first."""
    known = [program for program in PROGRAMS if program.family in ORCHESTRATIONS]
    words = family_of_words(set(ORCHESTRATIONS)) | {program.word.lower(): program.family for program in known}
    words |= {PLAYERS[program.word]: program.family for program in known if program.word in PLAYERS}
    words |= {name: name for name in ORCHESTRATIONS if name not in ("plucked", "mallets", "voices")}
    words |= {name.removesuffix("s"): name for name in ("strings", "winds")} | MORE_WORDS
    words |= {"harp": "harp", "flautist": "winds", "drummer": "drums", "choir": "voices"}
    longest = sorted(words, key=len, reverse=True)
    return words, re.compile(rf"\b({'|'.join(map(re.escape, longest))})(?:e?s)?\b", re.IGNORECASE)


def asked_family(prompt: str | None, classes: Sequence[str] = FAMILIES) -> str | None:
    """The one family of ``classes`` that ``prompt`` names; None if it names none, several, or another family too."""
    words, pattern = _words()
    named = {words[found.lower()] for found in pattern.findall(REFUSED.sub("", prompt or ""))}
    return next(iter(named)) if len(named) == 1 and named <= set(classes) else None


class ZeroShotFamilies:
    """Zero-shot classifier: probabilities ``(B, K)`` of the sentences "music for organ" and so on by CLAP.

    The softmax of cosine similarities with CLAP's temperature. Radford et al. (2021), section 3.1,
    https://arxiv.org/abs/2103.00020. Biased in favour of a model that is conditioned by the same CLAP.
    """

    def __init__(self, embedder: ClapEmbedder, tokenizer, classes: Sequence[str] = FAMILIES):
        self.embedder, self.classes = embedder, tuple(classes)
        self.name = f"zero-shot-{embedder.name}-{'-'.join(self.classes)}"
        sentences = [ASKED_OF_CLAP.get(name, f"music for {name}") for name in self.classes]
        with torch.no_grad():
            self.texts = embed_text(embedder.clap, tokenizer, sentences).float().cpu().numpy()  # (K, D)
            self.scale = float(embedder.clap.logit_scale_a.exp())

    def of_embeddings(self, embeddings: np.ndarray) -> np.ndarray:
        """Probabilities ``(N, K)`` for CLAP embeddings ``(N, D)``."""
        from scipy.special import softmax

        return softmax(self.scale * embeddings @ self.texts.T, axis=1)

    def __call__(self, waveforms: Tensor, sample_rate: int) -> np.ndarray:
        return self.of_embeddings(self.embedder(waveforms, sample_rate))
