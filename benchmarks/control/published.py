"""What others publish of such control, and how far their tasks differ."""

PUBLISHED = [
    {
        "system": "JASCO (Tal et al., 2024, https://arxiv.org/abs/2406.10970)",
        "chords": 0.69,
        "onsets_of_drums": 0.38,
        "melody": 0.42,
        "differs": "Overlap of chords, F1 of drum onsets and similarity of chroma between the music that was made and a "
        "recording from which the conditions were extracted by networks, so that the truth is itself an estimate; 10 s "
        "clips of licensed recordings, models of 400 M parameters and more, chords by another estimator. Ours asks by "
        "symbols and scores, knows the truth, and shows what its judge finds on true renderings.",
    },
    {
        "system": "MusicGen-melody (Copet et al., 2023, https://arxiv.org/abs/2306.05284)",
        "melody": 0.44,
        "differs": "Cosine similarity of the quantized chroma of a recording and of the music that was made of it; the "
        "whole mixture is the melody there. Ours is the share of frames whose strongest pitch has the pitch class of the "
        "melody's notes.",
    },
    {
        "system": "Mustango (Melechovsky et al., 2023, https://arxiv.org/abs/2311.08355)",
        "differs": "Tempo, key and chords are asked in words and checked by estimators on recordings (MusicBench); "
        "nothing is placed in time, so its percentages cannot be laid beside recall over time.",
    },
]
