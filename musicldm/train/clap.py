"""CLAP: a text tower and an audio tower whose unit vectors agree for pairs that belong together.

    captions -> RoBERTa -> (B, D) \
                                   contrastive loss
    clips (B, L) -> HTSAT -> (B, D) /

Wu et al. (2023), https://arxiv.org/abs/2211.06687. The tokenizer is a byte-level BPE trained on the captions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig, RobertaTokenizer

from musicldm.config import CLAPConfig
from musicldm.data.clips import Clip, read_clip
from musicldm.data.collection import Collection, split_clips
from musicldm.data.items import Item, item_rng
from musicldm.models.clap import (
    clap_feature_extractor,
    contrary_loss,
    contrastive_loss,
    embed_log_mel,
    embed_text,
    log_mel_for,
    regression_loss,
    resample,
    tempo_loss,
    train_tokenizer,
    views_loss,
)
from musicldm.scores.hard_negatives import contradict, stated_tempo
from musicldm.train.common import (
    Batch,
    initial_folder,
    loaded_batches,
    make_optimizer,
    model_folder,
    refuse_checkpointing,
    seed_batch,
    update,
)
from musicldm.train.diffusion.cache import load_conditioner
from musicldm.train.loop import Stage, fit
from musicldm.train.run_folder import Run, State, load_state, start

MAX_LOGIT_SCALE = 4.6052  # log 100, as in CLIP: beyond it single pairs dominate


class CaptionedClips(torch.utils.data.Dataset):
    """``dataset[Item]`` is (waveform (L,), captions, wrong ones): a whole clip, and ``caption_views`` of its captions.

    They are drawn at random, different ones where the clip has as many; without ``random_caption`` it is the first.
    With a ``contrary_weight`` there is a wrong one for each, empty where nothing can be contradicted; else none.
    """

    def __init__(self, clips: list[Clip], config: CLAPConfig, *, random_caption: bool = True):
        self.clips, self.config, self.random_caption = clips, config, random_caption

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: Item) -> tuple[Tensor, tuple[str, ...], tuple[str, ...]]:
        clip, mel = self.clips[item.index], self.config.mel
        texts, wrong = clip.texts[:1], ()
        if self.random_caption:
            order = item_rng(self.config.seed, item, "caption").permutation(len(clip.texts))
            texts = tuple(clip.texts[order[k % len(order)]] for k in range(self.config.caption_views))
            if self.config.contrary_weight:
                rng = item_rng(self.config.seed, item, "contrary")
                wrong = tuple(contradict(text, rng) or "" for text in texts)
        return torch.from_numpy(read_clip(clip, mel.sample_rate, mel.clip_samples)), texts, wrong


class Towers(nn.Module):
    """Both towers as one module whose forward pass does all: what data-parallel wrappers need.

    With ``freeze_audio`` the audio tower stays as it is, the statistics of its batch norm too.
    """

    def __init__(self, clap: ClapModel, tokenizer: RobertaTokenizer, *, freeze_audio: bool = False):
        super().__init__()
        self.clap, self.tokenizer = clap, tokenizer
        self.frozen = (clap.audio_model, clap.audio_projection) if freeze_audio else ()
        for part in self.frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Towers:
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(
        self, log_mel: Tensor, captions: Sequence[Sequence[str]], wrong: Sequence[Sequence[str]] = ()
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (1 + V + W, B, D) of the audio, of ``captions`` (V for each of B clips) and of W ``wrong`` ones.

        Those of empty wrong captions are zero. Also returns the scale of similarities.
        """
        scale = self.clap.logit_scale_a.clamp(max=MAX_LOGIT_SCALE).exp()
        audio = embed_log_mel(self.clap, log_mel)
        texts = [caption for view in (*captions, *wrong) for caption in view]
        text = embed_text(self.clap, self.tokenizer, texts).to(audio.dtype)
        said = torch.tensor([bool(caption) for view in wrong for caption in view], device=audio.device)
        first_wrong = len(texts) - len(said)
        text = torch.cat([text[:first_wrong], text[first_wrong:] * said[:, None]])
        return torch.cat([audio, text]).view(1 + len(captions) + len(wrong), *audio.shape), scale


def initial_towers(config: CLAPConfig, captions: list[str]) -> tuple[Towers, ClapFeatureExtractor]:
    """The towers to train and the audio tower's front end: those of ``config.init``, or fresh ones for ``captions``.

    Raises:
        ValueError: fusion is asked for, which the towers of ``init`` were not built for.
    """
    if config.init:
        clap, tokenizer, feature_extractor = load_conditioner(initial_folder(config))
        if config.fusion and not clap.config.audio_config.enable_fusion:
            raise ValueError(
                f"fusion=true: {config.init} has no fusion; start from a model with it, or leave out init or fusion"
            )
        towers = Towers(clap.float(), tokenizer, freeze_audio=config.freeze_audio)
        return towers.train(), feature_extractor  # they come in evaluation mode
    tokenizer = train_tokenizer(captions, config.vocabulary)
    return Towers(make_clap(config, len(tokenizer)), tokenizer), make_feature_extractor(config)


def make_clap(config: CLAPConfig, vocabulary: int) -> ClapModel:
    """Freshly initialised towers for a tokenizer of ``vocabulary`` pieces."""
    text = ClapTextConfig(
        vocab_size=vocabulary,
        hidden_size=config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        intermediate_size=4 * config.text_width,
        max_position_embeddings=config.text_positions + 2,  # RoBERTa numbers positions from 2
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        type_vocab_size=1,
    )
    audio = ClapAudioConfig(
        spec_size=config.audio_image,
        num_mel_bins=config.audio_n_mels,
        patch_size=config.audio_patch,
        patch_stride=[config.audio_patch] * 2,
        patch_embeds_hidden_size=config.audio_width,
        depths=list(config.audio_depths),
        num_attention_heads=list(config.audio_heads),
        hidden_size=config.audio_width * 2 ** (len(config.audio_depths) - 1),
        num_hidden_layers=len(config.audio_depths),
        enable_fusion=config.fusion,
    )
    return ClapModel(
        ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=config.embedding_size)
    )


def make_feature_extractor(config: CLAPConfig) -> ClapFeatureExtractor:
    """The front end of the audio tower."""
    return clap_feature_extractor(
        sample_rate=config.audio_sample_rate,
        clip_s=config.audio_s,
        n_fft=config.audio_n_fft,
        hop_length=config.audio_hop_length,
        n_mels=config.audio_n_mels,
        f_min=config.audio_f_min,
        f_max=config.audio_f_max,
        fusion=config.fusion,
    )


def log_mel_of(
    towers: Towers,
    waveform: Tensor,
    config: CLAPConfig,
    feature_extractor: ClapFeatureExtractor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The audio tower's input (B, 1 or 4, T, F) of ``waveform (B, L)`` at the collection's rate."""
    waveform = resample(waveform, config.mel.sample_rate, feature_extractor.sampling_rate)
    return log_mel_for(towers.clap, waveform, feature_extractor, generator)


class Teacher:
    """The larger CLAP that ``config.distill`` names.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: its embeddings have another size than ``clap``'s.
    """

    def __init__(self, config: CLAPConfig, clap: ClapModel, device: torch.device):
        larger, tokenizer, self.feature_extractor = load_conditioner(model_folder("distill", config.distill))
        if (wanted := larger.config.projection_dim) != clap.config.projection_dim:
            raise ValueError(
                f"distill: {config.distill} has embeddings of {wanted}, the towers to be trained of "
                f"{clap.config.projection_dim}; set embedding_size={wanted}"
            )
        self.config, self.towers = config, Towers(larger, tokenizer).to(device).eval()

    @torch.no_grad()
    def __call__(self, waveform: Tensor, captions: Sequence[Sequence[str]]) -> Tensor:
        """Embeddings (1 + V, B, D) of ``waveform (B, L)`` and of V captions of each."""
        return self.towers(log_mel_of(self.towers, waveform, self.config, self.feature_extractor), captions)[0].float()


def stated_octaves(captions: Sequence[Sequence[str]], wrong: Sequence[Sequence[str]]) -> Tensor:
    """log2 of the BPM (1 + V + W, B) that V captions of each of B clips state, and W wrong ones; NaN where none is.

    The first row is the audio's: the mean of what its captions state.
    """
    tempi = [[stated_tempo(caption) or math.nan for caption in view] for view in (*captions, *wrong)]
    octaves = torch.tensor(tempi).log2()
    return torch.cat([octaves[: len(captions)].nanmean(dim=0, keepdim=True), octaves])


def gather(views: Tensor, accelerator: Accelerator) -> Tensor:
    """``views (V, B, D)`` of all processes, one after the other in B, with gradients to each of them."""
    if accelerator.num_processes == 1:
        return views
    return torch.cat(all_gather(views), dim=1)


@dataclass
class CLAPStage(Stage):
    """Both towers against the others' pairs, or after a teacher."""

    run: Run
    state: State  # towers, as they are spread over processes, and their optimiser
    towers: Towers
    feature_extractor: ClapFeatureExtractor
    training: torch.utils.data.Dataset  # as `CaptionedClips`
    held_out: torch.utils.data.Dataset  # the same, one caption each
    teacher: Teacher | None = None

    def __post_init__(self):
        self.item_s = self.run.config.mel.clip_s
        self.networks, self.described = {"CLAP": self.towers}, {"CLAP": self.towers.clap}

    def batches(self) -> Iterator[Batch]:
        return loaded_batches(self.training, self.run, self.state)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One batch for both towers: waveforms (B, L), V captions of each (V, B) and wrong ones.

        The others of all processes are the negatives. With a teacher its embeddings are what is learned.
        """
        config, state, accelerator = self.run.config, self.state, self.run.accelerator
        seed_batch(config, batch.items)
        waveform, captions, wrong = batch.data
        waveform = waveform.to(accelerator.device)
        fused = self.towers.clap.config.audio_config.enable_fusion
        places = torch.Generator().manual_seed(torch.initial_seed()) if fused else None
        log_mel = log_mel_of(self.towers, waveform, config, self.feature_extractor, places)
        with accelerator.autocast():
            views, scale = state.parts["towers"](log_mel, captions, () if self.teacher else wrong)
            wanted = self.teacher(waveform, captions) if self.teacher else None
        if self.teacher:
            loss = regression_loss(views.float(), wanted) + 0 * scale  # which keeps its place among the gradients
            shown = {}
        else:
            loss, shown = self.contrast(views, scale, captions, wrong)
        accelerator.backward(loss)
        norm = update(self.run, state, batch.items, state.parts["optimizer"], loss, state.parts["towers"])
        return {"loss": loss.detach(), "scale": scale.detach(), **shown, **norm}

    def contrast(
        self, views: Tensor, scale: Tensor, captions: Sequence[Sequence[str]], wrong: Sequence[Sequence[str]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of ``views (1 + V + W, B, D)`` among those of all processes, and its parts."""
        config, accelerator, shown = self.run.config, self.run.accelerator, {}
        everything = gather(views.float(), accelerator)
        views, contrary = everything.split([1 + len(captions), len(wrong)])
        loss = views_loss(views, scale)
        if len(wrong):
            told = contrary_loss(views, contrary, scale.detach())
            loss = loss + config.contrary_weight * told
            shown["contrary"] = told.detach()
        if config.tempo_weight:
            octaves = stated_octaves(captions, wrong).to(everything)
            heard = tempo_loss(everything, accelerator.gather(octaves.T.contiguous()).T)
            loss = loss + config.tempo_weight * heard
            shown["tempo"] = heard.detach()
        return loss, shown

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Contrastive loss over batches of held-out clips, and recall of text-to-audio retrieval among all of them.

        ``constant_loss`` is the loss of embeddings that say nothing: the logarithm of the batch size.
        """
        config, towers, device = self.run.config, self.towers.eval(), self.run.accelerator.device
        n = min(len(self.held_out), config.validation_batches * config.batch_size)
        audios, texts, losses, constants = [], [], [], []
        for first in range(0, n, config.batch_size):
            pairs = [self.held_out[Item(0, index)] for index in range(first, min(n, first + config.batch_size))]
            waveform = torch.stack([waveform for waveform, _, _ in pairs]).to(device)
            log_mel = log_mel_of(towers, waveform, config, self.feature_extractor)
            (audio, text), scale = towers(log_mel, [[caption for _, (caption,), _ in pairs]])
            losses.append(float(contrastive_loss(audio, text, scale)) * len(pairs))
            constants.append(float(torch.tensor(len(pairs)).log()) * len(pairs))
            audios.append(audio)
            texts.append(text)
        towers.train()
        similarity = torch.cat(texts) @ torch.cat(audios).T  # (N, N)
        rank = (similarity > similarity.diagonal()[:, None]).sum(dim=1)
        return {
            "loss": sum(losses) / n,
            "constant_loss": sum(constants) / n,
            "recall_at_1": float((rank < 1).float().mean()),
            "recall_at_10": float((rank < 10).float().mean()),
            "clips": float(n),
        }

    def dry_run(self) -> Tensor:
        waveform, captions, _ = self.training[Item(0, 0)]
        waveform = waveform[None].to(self.run.accelerator.device)
        log_mel = log_mel_of(self.towers, waveform, self.run.config, self.feature_extractor)
        views, scale = self.towers(log_mel, [[caption] for caption in captions])
        return views_loss(views.float(), scale)

    def compile(self) -> None:
        self.towers.clap.audio_model.compile()  # each tower: around them is the tokenizer
        self.towers.clap.text_model.compile()

    def export(self, final: Path) -> None:
        clap = self.towers.clap
        clap.logit_scale_t.data.copy_(clap.logit_scale_a.data)
        clap.save_pretrained(final / "text_encoder")
        self.towers.tokenizer.save_pretrained(final / "tokenizer")
        self.feature_extractor.save_pretrained(final / "feature_extractor")


def train(run: Run, collection: Collection) -> Path:
    """Train CLAP on the captioned ``collection``.

    ``OUT/final`` holds ``text_encoder/`` (both towers), ``tokenizer/`` and ``feature_extractor/``, named as in the
    pipeline.

    Raises:
        ValueError: a recording has no caption; or gradient checkpointing is asked for, which ClapModel does not know;
            or the model to be distilled does not fit, or contrary captions or tempi are to be learned beside it.
    """
    config, accelerator = run.config, run.accelerator
    refuse_checkpointing(config, "CLAP model")
    for name in ("contrary_weight", "tempo_weight"):
        if config.distill and (weight := getattr(config, name)):
            raise ValueError(
                f"{name}={weight} goes with the contrast, which distill={config.distill} replaces: leave one out"
            )
    clips = collection.clips(config.mel.clip_s)
    if bare := [clip.path for clip in clips if not clip.texts]:
        raise ValueError(
            f"{len(bare)} recordings of {collection.folder} have no caption, the first is {bare[0].name}: add text"
        )
    clips, held_out = split_clips(clips, config.share)
    plain, feature_extractor = initial_towers(config, [text for clip in clips for text in clip.texts])
    teacher = Teacher(config, plain.clap, accelerator.device) if config.distill else None
    start(run)
    plain.clap.logit_scale_t.requires_grad_(False)  # one scale serves both directions
    towers, optimizer = accelerator.prepare(plain, make_optimizer(plain, config))
    state = State({"towers": towers, "optimizer": optimizer}, clips)
    load_state(state, run.out, accelerator)
    training, pairs = CaptionedClips(clips, config), CaptionedClips(held_out, config, random_caption=False)
    return fit(CLAPStage(run, state, plain, feature_extractor, training, pairs, teacher), run, collection)
