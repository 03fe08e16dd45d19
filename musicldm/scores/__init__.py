"""Scores: reading MIDI, facts and captions of it, arranging and rendering."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "captions": ["write_captions"],
        "facts": ["describe", "score_facts"],
        "general_midi": ["ORCHESTRATIONS", "PROGRAMS"],
        "hard_negatives": ["contradict"],
        "index": ["read_index"],
        "reading": ["Change", "Score", "change_score", "read_score"],
        "rendering": ["RenderConfig", "find_scores", "render_scores"],
        "sketches": ["Sketch"],
        "splits": ["drawn_split"],
        "synthesis": ["Effects", "find_soundfont", "synthesize"],
    },
)
