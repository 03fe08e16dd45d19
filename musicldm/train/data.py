"""What a run has been trained on: noted whenever it begins or goes on, compared, told in the card.

clips, licences -> a line of OUT/data.jsonl for each set of clips, with the step from which it was used
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from pathlib import Path

from musicldm.audio import write_whole
from musicldm.data.clips import Clip
from musicldm.data.collection import Collection
from musicldm.data.shards import recording_identity

DATA_FILE = "data.jsonl"


def note_data(out: Path, step: int, clips: list[Clip], collection: Collection) -> None:
    """Note in ``OUT/data.jsonl`` that the run trains on ``clips`` from ``step`` on; warn if they were others before."""
    now, before = {"from_step": step, **about_data(clips, collection)}, read_data(out)
    if step == 0:
        before = []
    elif not before:
        now["from_step"] = None  # a run of an earlier version
    elif before[-1]["digest"] == now["digest"]:
        return
    else:
        warnings.warn(
            f"{out} goes on with other data than before, or changed ones: it learned from {size_of(before[-1])} until "
            f"step {step}, and now from {size_of(now)}; its card tells of both",
            stacklevel=2,
        )
    lines = [json.dumps(each) + "\n" for each in (*before, now)]
    write_whole(out / DATA_FILE, "".join(lines).encode())


def read_data(out: Path) -> list[dict]:
    """The lines of ``OUT/data.jsonl``; none of a run of an earlier version."""
    file = out / DATA_FILE
    return [json.loads(line) for line in file.read_text().split("\n") if line] if file.is_file() else []


def about_data(clips: list[Clip], collection: Collection) -> dict:
    """How much music ``clips`` are, under which licences; a digest of them and of the content of all recordings."""
    paths = dict.fromkeys(clip.path for clip in clips)
    all_paths = dict.fromkeys(row["path"] for row in collection.rows)  # what is held out may change too
    names = [[path.name, recording_identity(path).partition(" ")[2]] for path in all_paths]  # a copy has another time
    names += [[clip.path.name, clip.start_s, clip.texts] for clip in clips]
    licences = Counter(licence or "not stated" for path, licence in collection.licences().items() if path in paths)
    return {
        "folder": collection.folder.resolve().name,
        "clips": len(clips),
        "recordings": len(paths),
        "hours": round(sum(clip.duration_s for clip in clips) / 3600, 6),
        "licences": dict(licences.most_common()),
        "digest": hashlib.sha256(json.dumps(names).encode()).hexdigest()[:24],
    }


def size_of(about: dict) -> str:
    """How much music a line of ``data.jsonl`` tells of."""
    return f"{about['clips']} clips of {about['recordings']} recordings, {about['hours']:.3g} hours"


def data_section(out: Path, clips: list[Clip], collection: Collection) -> str:
    """The card's words on all data of the run in ``out``, which ended with ``clips``."""
    sets = read_data(out) or [{"from_step": 0, **about_data(clips, collection)}]
    if sets[0]["from_step"] is None:
        sets[0]["from_step"] = 0  # what it began with is not known to be other data
    if len(sets) == 1:
        return _told(sets[0], size_of(sets[0]))
    return "\n\n".join(_told(each, f"From step {each['from_step']}: {size_of(each)}") for each in sets)


def _told(about: dict, text: str) -> str:
    if not set(about["licences"]) - {"not stated"}:
        return f"{text}. Their licences are not recorded."
    table = "\n".join(f"| {name} | {count} |" for name, count in about["licences"].items())
    return f"{text}.\n\n| Licence | Recordings |\n| --- | --- |\n{table}"
