"""What a rendering of scores leaves to choice, and to chance."""

from dataclasses import dataclass

from musicldm.scores.general_midi import ORCHESTRATIONS
from musicldm.scores.synthesis import BACKENDS


@dataclass(frozen=True)
class RenderConfig:
    """What to make of every score."""

    soundfonts: tuple[str, ...] = ()  # files; empty: the one that find_soundfont() finds
    backend: str = "fluidsynth"  # or "tinysoundfont"
    sample_rate: int = 16_000  # Hz of the clips
    channels: int = 1  # 1 mono, 2 stereo
    clip_s: float | None = 10.24  # None: whole pieces
    max_clips: int = 2  # of one rendering, spread over the piece
    min_clip_s: float = 4.0  # a piece with less music than a clip gives one shorter clip, but not shorter than this
    variants: int = 1  # renderings of each score
    orchestrate: str = "original"  # "original", families or "all", joined by commas: see _turn
    seed: int = 0
    tempo_range: tuple[float, float] = (0.87, 1.15)
    transpose_range: tuple[int, int] = (-5, 6)  # semitones
    velocity_range: tuple[float, float] = (0.7, 1.2)
    program_share: float = 0.5  # how often a part gets another program of its kind
    drumless_share: float = 0.0  # how often a rendering for the original instruments leaves the drums out
    peak_db_range: tuple[float, float] = (-9.0, -1.0)  # of each clip, relative to full scale
    pan_share: float = 0.0  # how often a rendering places its parts anew between left and right, in a room drawn for it
    loudness_range: tuple[float, float] | None = None  # LUFS of each clip, limited as records are; None: peak_db_range
    min_sound: float = 0.85  # share of a clip in which something sounds
    max_silence_s: float = 1.0  # longest silence inside a clip
    validation_share: float = 0.05  # of the pieces
    captions: int = 4  # alternatives in ``texts``
    timeout_s: float = 120.0  # for one call of the synthesizer
    contexts: bool = False  # keep each clip's notes beside it, and what renders parts of it again

    def __post_init__(self):
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if not 8_000 <= self.sample_rate <= 96_000:
            raise ValueError(f"sample_rate must be from 8000 to 96000 Hz, got {self.sample_rate}")
        if self.channels not in (1, 2):
            raise ValueError(f"channels must be 1 or 2, got {self.channels}")
        for name in ("max_clips", "variants", "captions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.min_clip_s >= 0.5:
            raise ValueError(f"min_clip_s must be at least 0.5 s, got {self.min_clip_s}")
        if self.clip_s is not None and not self.min_clip_s <= self.clip_s <= 3600:
            raise ValueError(f"clip_s must be from min_clip_s={self.min_clip_s} to 3600 s, got {self.clip_s}")
        for name in ("tempo_range", "transpose_range", "velocity_range", "peak_db_range"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name} must go from low to high, got {low} to {high}")
        if not 0.25 <= self.tempo_range[0] <= self.tempo_range[1] <= 4:
            raise ValueError(f"tempo_range must lie within 0.25 and 4, got {self.tempo_range}")
        if not -24 <= self.transpose_range[0] <= self.transpose_range[1] <= 24:
            raise ValueError(f"transpose_range must lie within -24 and 24 semitones, got {self.transpose_range}")
        if not 0 < self.velocity_range[0] <= self.velocity_range[1] <= 127:
            raise ValueError(f"velocity_range must be positive, up to 127, got {self.velocity_range}")
        if not -200 <= self.peak_db_range[0] <= self.peak_db_range[1] <= -0.1:
            raise ValueError(f"peak_db_range must end at -0.1 dB or lower, and begin at -200, got {self.peak_db_range}")
        if self.loudness_range and not -60 <= self.loudness_range[0] <= self.loudness_range[1] <= -5:
            raise ValueError(
                f"loudness_range must go from low to high within -60 and -5 LUFS, got {self.loudness_range}"
            )
        for name in ("max_silence_s", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("program_share", "drumless_share", "pan_share", "min_sound", "validation_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        orchestrations(self.orchestrate)


def orchestrations(text: str) -> tuple[str, ...]:
    """``"original,all"`` -> every choice. Raises ValueError naming the choices."""
    chosen: list[str] = []
    for name in text.split(","):
        name = name.strip()
        if name == "all":
            chosen += ORCHESTRATIONS
        elif name == "original" or name in ORCHESTRATIONS:
            chosen.append(name)
        else:
            raise ValueError(f"orchestrate knows original, all, {', '.join(ORCHESTRATIONS)}; got {name!r}")
    return tuple(dict.fromkeys(chosen))
