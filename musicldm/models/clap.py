"""CLAP: text or waveform to a unit vector; texts and recordings that belong together lie close.

    text      -> tokens -> RoBERTa -> projection -> (B, D)
    waveform (B, L) at any rate -> resample, repeat or crop -> log-mel (B, 1, T, F) -> HTSAT -> projection -> (B, D)
    and for a model with feature fusion: the whole of a longer one, shrunk, and three clips of it (B, 4, T, F)

The networks are ``transformers.ClapModel``; the front end here is what CLAP was trained with, in torch, batched and
on any device. Rate, window, bands and clip length come from the feature extractor. Gradients flow when they are on.

Wu et al. (2023), Large-scale contrastive language-audio pretraining. https://arxiv.org/abs/2211.06687
"""

import itertools
import json
import math
import threading
import warnings
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase, RobertaTokenizer

from musicldm.audio.resampling import resample
from musicldm.config.values import check_text, shown

POWER_FLOOR = 1e-10  # -100 dB
TEMPO_CENTRE = 112.0  # BPM of a first component of 0
TEMPO_OCTAVES = 10.0  # that a first component of 1 would be above it
TOKENIZING = threading.Lock()  # tokenizers keep padding and truncation of a call where other threads see them
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # ids 0 to 4; the first four as in RoBERTa


def clap_feature_extractor(
    sample_rate: int = 48_000,
    clip_s: float = 10,
    n_fft: int = 1024,
    hop_length: int = 480,
    n_mels: int = 64,
    f_min: float = 50.0,
    f_max: float = 14_000.0,
    fusion: bool = False,
) -> ClapFeatureExtractor:
    """The front end's parameters as transformers stores them; the defaults are those of the released CLAP.

    transformers' own defaults (0 Hz and fusion) are not what CLAP was trained with.
    """
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(f"mel bands from {f_min} to {f_max} Hz do not fit below {sample_rate} / 2 Hz")
    if round(clip_s * sample_rate) <= n_fft // 2:
        raise ValueError(f"clip_s must exceed half a window of {n_fft} samples at {sample_rate} Hz, got {clip_s}")
    return ClapFeatureExtractor(
        feature_size=n_mels,
        sampling_rate=sample_rate,
        hop_length=hop_length,
        max_length_s=clip_s,
        fft_window_size=n_fft,
        frequency_min=f_min,
        frequency_max=f_max,
        truncation="fusion" if fusion else "rand_trunc",
        padding="repeatpad",
    )


def embed_text(clap: ClapModel, tokenizer: PreTrainedTokenizerBase | None, texts: list[str]) -> Tensor:
    """Unit-norm embeddings (B, D) of ``texts``, padded to the longest of them.

    A text longer than the model has positions is cut, with a warning. Without a tokenizer only the empty text has one.

    Raises:
        ValueError: if there is no text, or no tokenizer for one.
    """
    if not isinstance(texts, list | tuple) or not texts:
        raise ValueError(f"texts must be a list of at least one string, got {shown(texts)}")
    for text in texts:
        check_text("text", text)
    config = clap.config.text_config
    if tokenizer is None:
        if texts != [""]:
            raise ValueError(
                f"there is no tokenizer for {shown(texts)}; pass prompt_embeds (unit vectors of CLAP), or set "
                "pipeline.tokenizer to the one that its CLAP was trained with"
            )
        ids = torch.tensor([[config.bos_token_id, config.eos_token_id]], device=clap.device)  # all there is to no text
        return _pooled(clap.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids)))
    n_positions = config.max_position_embeddings - config.pad_token_id - 1  # RoBERTa numbers positions from pad + 1
    with TOKENIZING:
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        tokens = tokenizer(texts, padding="longest", truncation=True, max_length=n_positions, return_tensors="pt")
    for text, length in zip(texts, lengths, strict=True):
        if length > n_positions:
            warnings.warn(f"only the first {n_positions} of {length} tokens are used of {shown(text)}", stacklevel=2)
    input_ids, mask = tokens["input_ids"].to(clap.device), tokens["attention_mask"].to(clap.device)
    return _pooled(clap.get_text_features(input_ids=input_ids, attention_mask=mask))


def embed_audio(
    clap: ClapModel,
    feature_extractor: ClapFeatureExtractor,
    waveforms: Tensor,
    sample_rate: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Unit-norm embeddings (B, D) of ``waveforms`` (B, L), or of the means of (B, A, L), at ``sample_rate`` Hz.

    Only one clip of the feature extractor's length is heard: the middle of longer audio, or with a ``generator`` a
    random crop of each row. A model with feature fusion hears all of it, see `fused_log_mel`.
    """
    if not torch.isfinite(waveforms).all():
        raise ValueError("waveforms hold NaN or infinity; replace these samples first")
    waveforms = waveforms.mean(dim=1) if waveforms.ndim == 3 else waveforms
    waveforms = resample(waveforms.to(clap.device, torch.float32), sample_rate, feature_extractor.sampling_rate)
    return embed_log_mel(clap, log_mel_for(clap, waveforms, feature_extractor, generator))


def log_mel_for(
    clap: ClapModel,
    waveforms: Tensor,
    feature_extractor: ClapFeatureExtractor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """What `embed_log_mel` wants of ``waveforms (B, L)``: `fused_log_mel` for towers of several views of a recording.

    These are towers with feature fusion, and those whose first layer takes its four views as channels. Others hear
    `clap_log_mel`.
    """
    config = clap.config.audio_config
    make = fused_log_mel if config.enable_fusion or config.patch_embed_input_channels == 4 else clap_log_mel
    return make(waveforms, feature_extractor, generator)


def embed_log_mel(clap: ClapModel, log_mel: Tensor) -> Tensor:
    """Unit-norm embeddings (B, D) of ``log_mel (B, 1 or 4, T, F)`` from `log_mel_for`."""
    config = clap.config.audio_config
    n_frames, n_bands = log_mel.shape[-2:]
    most_frames = config.spec_size * (config.spec_size // config.num_mel_bins)  # the image holds them in rows
    if n_bands != config.num_mel_bins or n_frames > most_frames:
        raise ValueError(
            f"got {n_frames} frames of {n_bands} bands; this CLAP takes up to {most_frames} of {config.num_mel_bins}: "
            "use the feature extractor that belongs to it"
        )
    log_mel = log_mel.to(clap.device, clap.dtype)
    if not config.enable_fusion:
        if log_mel.shape[1] not in (1, channels := config.patch_embed_input_channels):
            raise ValueError(f"this CLAP takes log-mels of {channels} channels, or 1 for all, got {log_mel.shape[1]}")
        return _pooled(clap.get_audio_features(input_features=log_mel.expand(-1, channels, -1, -1)))
    is_longer = torch.full((len(log_mel), 1), log_mel.shape[1] == 4, device=log_mel.device)
    features = log_mel.expand(-1, 4, -1, -1)
    return _pooled(clap.get_audio_features(input_features=features, is_longer=is_longer))


def _pooled(features) -> Tensor:
    """transformers 5 returns an output object whose ``pooler_output`` is normalised, 4.x that tensor itself."""
    return features if isinstance(features, Tensor) else features.pooler_output


def clap_log_mel(
    waveforms: Tensor, feature_extractor: ClapFeatureExtractor, generator: torch.Generator | None = None
) -> Tensor:
    """Log-mel spectrograms (B, 1, T, F) in dB of ``waveforms (B, L)`` at the feature extractor's rate.

    Equals ``ClapFeatureExtractor`` with ``truncation="rand_trunc"``, except that without a ``generator`` longer audio
    is cropped in the middle, so that results repeat.
    """
    if feature_extractor.truncation == "fusion":
        warnings.warn(
            "the feature extractor asks for fusion, which other mel filters belong to and this model does not know; "
            "using 'rand_trunc' (build it with clap_feature_extractor())",
            stacklevel=2,
        )
    clips = fit_to_clip(waveforms.float(), feature_extractor, generator)
    return _log_mel(clips, feature_extractor, feature_extractor.mel_filters_slaney).unsqueeze(1)


def fused_log_mel(
    waveforms: Tensor, feature_extractor: ClapFeatureExtractor, generator: torch.Generator | None = None
) -> Tensor:
    """Log-mel spectrograms in dB of ``waveforms (B, L)`` for a model with feature fusion.

    (B, 4, T, F) of audio longer than a clip: all of it, shrunk to the T frames of a clip, and a clip of each third; the
    first, the middle and the last one possible, or with a ``generator`` random ones. (B, 1, T, F) of other audio. Mel
    bands as ``ClapFeatureExtractor`` has them with ``truncation="fusion"``. Wu et al. (2023), section 3.2.
    """
    clip_samples = round(feature_extractor.nb_max_samples)
    filters, n_frames = feature_extractor.mel_filters, clip_samples // feature_extractor.hop_length + 1
    if waveforms.ndim == 2 and waveforms.shape[1] > clip_samples:
        whole = _log_mel(waveforms.float(), feature_extractor, filters)  # (B, T', F)
    else:
        whole = _log_mel(fit_to_clip(waveforms.float(), feature_extractor), feature_extractor, filters)
    n_starts = whole.shape[1] - n_frames + 1
    if n_starts == 1:
        return whole.unsqueeze(1)
    size = [n_frames, whole.shape[2]]
    shrunk = functional.interpolate(whole.unsqueeze(1), size=size, mode="bilinear", align_corners=False)
    if generator is None:
        starts = [[0, n_starts // 2, n_starts - 1]] * len(whole)
    else:
        drawn = torch.rand(len(whole), 3, generator=generator, device=generator.device)
        starts = ((torch.arange(3, device=drawn.device) + drawn) * n_starts / 3).long().tolist()
    clips = [
        torch.stack([row[start : start + n_frames] for start in of_row])
        for row, of_row in zip(whole, starts, strict=True)
    ]
    return torch.cat([shrunk, torch.stack(clips)], dim=1)


def _log_mel(waveforms: Tensor, feature_extractor: ClapFeatureExtractor, filters) -> Tensor:
    """Log-mel spectrograms (B, T, F) in dB of ``waveforms (B, L)``, frames centred; ``filters (n_fft / 2 + 1, F)``."""
    spectrum = torch.stft(
        waveforms,
        feature_extractor.fft_window_size,
        feature_extractor.hop_length,
        window=torch.hann_window(feature_extractor.fft_window_size, device=waveforms.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )  # (B, n_fft / 2 + 1, T)
    power = spectrum.real.square() + spectrum.imag.square()
    filters = torch.as_tensor(filters, dtype=power.dtype, device=power.device)
    mel = power.transpose(1, 2) @ filters  # (B, T, F)
    return 10 * mel.clamp(min=POWER_FLOOR).log10()


def fit_to_clip(
    waveforms: Tensor, feature_extractor: ClapFeatureExtractor, generator: torch.Generator | None = None
) -> Tensor:
    """``waveforms (B, L)`` repeated and padded, or cropped, to the feature extractor's clip length (B, N)."""
    if waveforms.ndim != 2 or waveforms.shape[1] == 0:
        raise ValueError(f"waveforms must be (batch, samples) with at least one sample, got {tuple(waveforms.shape)}")
    n_samples = round(feature_extractor.nb_max_samples)
    batch, length = waveforms.shape
    if length > n_samples:
        if generator is None:
            start = (length - n_samples) // 2
            return waveforms[:, start : start + n_samples]
        starts = torch.randint(length - n_samples + 1, (batch,), generator=generator, device=generator.device)
        rows = [row[start : start + n_samples] for row, start in zip(waveforms, starts.tolist(), strict=True)]
        return torch.stack(rows)
    repeats = n_samples // length
    match feature_extractor.padding:
        case "repeatpad":
            waveforms = waveforms.repeat(1, repeats)
        case "repeat":
            waveforms = waveforms.repeat(1, repeats + 1)[:, :n_samples]
        case "pad":
            pass
        case other:
            raise ValueError(f"the feature extractor's padding must be repeatpad, repeat or pad, got {other!r}")
    return functional.pad(waveforms, (0, n_samples - waveforms.shape[1]))


def contrastive_loss(audio: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric cross-entropy over unit-norm pairs ``audio (B, D)``, ``text (B, D)``; row i belongs to row i.

    ``scale`` multiplies the cosine similarities (an inverse temperature, not its logarithm).
    """
    if audio.shape != text.shape or audio.ndim != 2:
        raise ValueError(f"audio and text must both be (B, D), got {tuple(audio.shape)} and {tuple(text.shape)}")
    logits = scale * audio @ text.T  # (B, B)
    labels = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def regression_loss(views: Tensor, wanted: Tensor) -> Tensor:
    """How far ``views (V, B, D)``, audio and then captions, are from the ``wanted`` vectors of a larger model.

    1 - cosine, half of it the audio's, half the captions': each modality is compared with itself alone.
    """
    distance = 1 - functional.cosine_similarity(views, wanted, dim=-1)  # (V, B)
    return (distance[0].mean() + distance[1:].mean()) / 2


def views_loss(views: Tensor, scale: Tensor | float) -> Tensor:
    """Mean of `contrastive_loss` over all pairs of ``views (V, B, D)`` of the same B clips: audio, caption, caption...

    Tian et al. (2020), Contrastive multiview coding, section 3.3. https://arxiv.org/abs/1906.05849
    """
    pairs = list(itertools.combinations(views, 2))
    if not pairs:
        raise ValueError(f"views must be (V, B, D) with two views or more, got {tuple(views.shape)}")
    return torch.stack([contrastive_loss(one, other, scale) for one, other in pairs]).mean()


def contrary_loss(views: Tensor, wrong: Tensor, scale: Tensor | float) -> Tensor:
    """How surely captions are told from contrary ones: mean of -log p(right) in a choice between the two.

    Given any other of ``views (1 + V, B, D)``, the audio and V captions of each clip; ``wrong (V, B, D)`` are the
    contrary captions, zero where there is none. Among many clips' captions the one wrong word would hardly count.
    """
    captions, there = views[1:], wrong.any(dim=-1)  # (V, B)
    gaps = torch.einsum("ubd,vbd->uvb", views, captions - wrong)  # cosines of the right, less those of the wrong
    asked = ~torch.eye(len(views), dtype=torch.bool, device=views.device)[:, 1:, None] & there  # (1 + V, V, B)
    return functional.softplus(-scale * gaps[asked]).sum() / asked.sum().clamp(min=1)


def tempo_loss(embeddings: Tensor, octaves: Tensor) -> Tensor:
    """Mean squared error of what `read_tempo` reads in ``embeddings (..., D)``, where ``octaves (...)`` is not NaN."""
    known = ~octaves.isnan()
    errors = read_tempo(embeddings)[known] - octaves[known]
    return (errors**2).sum() / known.sum().clamp(min=1)


def read_tempo(embeddings: Tensor) -> Tensor:
    """The tempo (...) that embeddings (..., D) trained with `tempo_loss` say, as log2 of BPM: their first component.

    0.1 of it is an octave. Contrasts leave to chance how much of a unit vector says what; this fixes it for the tempo.
    """
    return TEMPO_OCTAVES * embeddings[..., 0] + math.log2(TEMPO_CENTRE)


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> RobertaTokenizer:
    """Byte-level byte-pair encoding of at most ``vocab_size`` pieces, learned from ``captions``.

    All 256 bytes are pieces, so no text is unknown: words that the captions lack are spelled in shorter pieces, at
    worst in single bytes. The first word is encoded like the same word elsewhere. Letter case counts.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (all bytes and the special tokens), got {vocab_size}")
    captions = list(captions)
    if not any(caption.strip() for caption in captions):
        raise ValueError("there are no captions to train a tokenizer on")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return RobertaTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], add_prefix_space=True
    )
