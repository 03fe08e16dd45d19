"""The report of an evaluation: one HTML file with tables, plots, spectrograms and players, and the same in Markdown."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from pathlib import Path

import numpy as np
import soundfile

from musicldm.audio import read_audio
from musicldm.audio.figures import new_figure, png_bytes, spectrogram_png

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # which the format knows
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }}
.number {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
.note {{ background: #fff6e0; padding: .6rem .8rem; border-radius: .3rem; }}
img {{ max-width: 100%; height: auto; }}
.clip {{ border-bottom: 1px solid #ddd; padding: .6rem 0; overflow-wrap: anywhere; }}
.clip img {{ display: block; max-width: min(100%, 40rem); margin: .3rem 0; }}
audio {{ width: 100%; max-width: 40rem; display: block; }}
small {{ color: #666; }}
@media (max-width: 40rem) {{
  table {{ font-size: .85rem; }} .number {{ white-space: normal; }}
  td:first-child {{ min-width: 9rem; }} th, td {{ padding-right: .5rem; }}
}}
</style></head><body>
{body}
</body></html>
"""


def value_text(metric: dict) -> tuple[str, str]:
    """A value and its interval, with as many digits as the interval's width justifies."""
    width = metric["high"] - metric["low"]
    digits = 4 if width <= 0 else int(np.clip(1 - np.floor(np.log10(width)), 0, 5))
    return f"{metric['value']:.{digits}f}", f"{metric['low']:.{digits}f} to {metric['high']:.{digits}f}"


def markdown(report: dict) -> str:
    """``report.md``."""
    return f"# {report['title']}\n\n{report['about']}\n\n{_table(report)}"


def guidance_words(settings: dict) -> str:
    """ "guidance 4 from 0.2 to 0.7 of the noise"; settings of earlier versions have no interval."""
    least, most = settings.get("guidance_interval", (0, 1))
    where = "" if (least, most) == (0, 1) else f" from {least:g} to {most:g} of the noise"
    return f"guidance {settings['guidance']:g}{where}"


def card_text(report: dict) -> str:
    """An evaluation as a section of its model's card, without names of local folders."""
    made = report["settings"]
    about = (
        f"{len(report['clips'])} clips of revision {made['revision']}, by `musicldm evaluate`: seed {made['seed']}, "
        f"{made['steps']} steps of {made['scheduler']}, {guidance_words(made)}."
    )
    return f"{about}\n\n{_table(report)}"


def _table(report: dict) -> str:
    """The measures as a Markdown table, and the notes on them."""
    lines = ["| Measure | Value | 95 % interval | Better |", "| --- | ---: | ---: | --- |"]
    for metric in report["metrics"].values():
        value, interval = value_text(metric)
        lines.append(f"| {metric['meaning']} | {value} | {interval} | {_better(metric)} |")
    for note in report["notes"]:
        lines += ["", textwrap.fill(note, 110)]
    if report["base_rate"]:
        lines += ["", _base_rate_text(report["base_rate"])]
    return "\n".join(lines) + "\n"


def page(report: dict, folder: Path, players: int = 12) -> str:
    """``report.html``, with spectrograms and MP3 of the first ``players`` clips (paths relative to ``folder``)."""
    parts = [f"<h1>{html.escape(report['title'])}</h1>", f"<p>{html.escape(report['about'])}</p>"]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in report["notes"]]
    rows = ["<tr><th>Measure</th><th class=number>Value</th><th class=number>95 % interval</th><th>Better</th></tr>"]
    for metric in report["metrics"].values():
        value, interval = value_text(metric)
        rows.append(
            f"<tr><td>{html.escape(metric['meaning'])}</td><td class=number>{value}</td>"
            f"<td class=number>{interval}</td><td>{_better(metric)}</td></tr>"
        )
    parts.append(f'<div class="table"><table>{"".join(rows)}</table></div>')
    for title, png in plots(report).items():
        data = base64.b64encode(png).decode()
        title = html.escape(title)
        parts.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">')
    if report["base_rate"]:
        parts.append(f"<p><small>{html.escape(_base_rate_text(report['base_rate']))}</small></p>")
    parts.append("<h2>Clips</h2>")
    for clip in report["clips"][:players]:
        parts.append(_player(clip, folder))
    if len(report["clips"]) > players:
        parts.append(f"<p><small>The first {players} of {len(report['clips'])} clips.</small></p>")
    return PAGE.format(title=html.escape(report["title"]), body="\n".join(parts))


def _better(metric: dict) -> str:
    return "higher" if metric["more_is_better"] else "lower"


def _base_rate_text(base_rate: dict) -> str:
    return (
        f"Base rate: similarity of {base_rate['clips']} training clips to the nearest clip of another piece. Half are "
        f"above {base_rate['similarity_50']:.3f}, 5 % above {base_rate['similarity_95']:.3f}, 1 % above "
        f"{base_rate['similarity_99']:.3f}. A similarity in this range says nothing about copying."
    )


def _player(clip: dict, folder: Path) -> str:
    waveform, rate = read_audio(folder / clip["file"])
    picture = base64.b64encode(spectrogram_png(waveform, rate)).decode()
    if rate not in MP3_RATES:
        waveform, rate = read_audio(folder / clip["file"], min(MP3_RATES, key=lambda other: abs(other - rate)))
    file = io.BytesIO()
    soundfile.write(file, waveform / max(1.0, float(np.abs(waveform).max())), rate, format="MP3")
    data = base64.b64encode(file.getvalue()).decode()
    facts = []
    if clip.get("text_audio_similarity") is not None:
        facts.append(f"similarity to the prompt {clip['text_audio_similarity']:.3f}")
    if clip.get("novelty"):
        near = clip["novelty"]["nearest"][0]
        facts.append(
            f"{clip['novelty']['verdict']}: nearest {near.get('title') or near['recording']} "
            f"at {near['start_s']:.1f} s, similarity {near['similarity']:.3f}"
        )
    return (
        f'<div class="clip">{html.escape(clip["prompt"] or clip["file"])}'
        f'<img alt="mel spectrogram" src="data:image/png;base64,{picture}">'
        f'<audio controls preload="none" src="data:audio/mpeg;base64,{data}"></audio>'
        f"<small>{html.escape('; '.join(facts))}</small></div>"
    )


def plots(report: dict) -> dict[str, bytes]:
    """Histograms, as PNG, of the measures with a value for each clip."""
    single, base_rate = report["single"], report["base_rate"]
    made = {}
    if "text_audio_similarity" in single:
        drawn = {"clips": single["text_audio_similarity"]}
        made["Similarity to the prompt"] = _histogram(drawn, "cosine of CLAP embeddings")
    if "nearest_training_similarity" in single:
        drawn = {"clips": single["nearest_training_similarity"], "other music (base rate)": base_rate["similarities"]}
        made["Similarity to the nearest training clip"] = _histogram(drawn, "cosine of CLAP embeddings")
    return made


def _histogram(series: dict[str, list[float]], label: str) -> bytes:
    figure = new_figure(7, 2.8)
    axes = figure.subplots()
    every = np.concatenate([np.asarray(values) for values in series.values()])
    edges = np.linspace(every.min(), every.max() + 1e-9, 25)
    for (name, values), color in zip(series.items(), ("#3b528b", "#e08214"), strict=False):
        share = np.full(len(values), 100 / len(values))
        axes.hist(values, bins=edges, weights=share, histtype="stepfilled", alpha=0.5, color=color, label=name)
    axes.set_xlabel(label)
    axes.set_ylabel("% of clips")
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False)
    return png_bytes(figure)
