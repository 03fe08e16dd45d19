"""What others publish of such control, and how far their tasks differ."""

PUBLISHED = [
    {
        "system": "JASCO (Tal et al., 2024, https://arxiv.org/abs/2406.10970)",
        "chords": 0.69,
        "onsets_of_drums": 0.38,
        "melody": 0.42,
        "differs": "Overlap of chords, F1 of drum onsets and similarity of chroma between the music that was made and "
        "a recording, from which networks took what was asked, so that the truth is itself an estimate; clips of "
        "10 s, models of 400 M parameters and more, another estimator of chords. Here symbols and scores are asked, "
        "the truth is known, and what the judge finds in true renderings is shown.",
    },
    {
        "system": "MusicGen-melody (Copet et al., 2023, https://arxiv.org/abs/2306.05284)",
        "melody": 0.44,
        "differs": "Cosine similarity of the quantized chroma of a recording and of the music that was made of it; the "
        "whole mixture is the melody there. Here it is the share of the time in which the strongest pitch has the "
        "pitch class of the melody's note.",
    },
    {
        "system": "Mustango (Melechovsky et al., 2023, https://arxiv.org/abs/2311.08355)",
        "differs": "Tempo, key and chords are asked in words and looked for by estimators; nothing is placed in time, "
        "so that its shares cannot be laid beside a recall over time.",
    },
]
