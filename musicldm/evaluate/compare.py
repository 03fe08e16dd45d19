"""Comparison of two evaluations: which measures differ significantly, and which cannot be compared.

two metrics.json -> {measure: a, b, difference, probability}, {measure: why it was left out}
"""

from __future__ import annotations

import numpy as np

from musicldm.evaluate.intervals import Estimate, holm, paired_difference, unpaired_difference

INDEX = ("nearest_training_similarity", "sim_aa_90", "sim_aa_95", "above_base_rate", "copies")
REFERENCE = ("reference", "reference_content")  # evaluations by earlier versions have only the first
MANIFOLD = ("precision", "recall", "density", "coverage")
# What a measure depends on besides the music, as entries of ``sources`` in metrics.json.
DEPENDS = dict.fromkeys(INDEX, ("CLAP", "index")) | dict.fromkeys(MANIFOLD, ("CLAP", *REFERENCE))
DEPENDS |= dict.fromkeys(("text_audio_similarity", "vendi_score", "mean_pairwise_similarity"), ("CLAP",))
DEPENDS |= {"inception_score": ("classifier",), "paired_kl_divergence": ("classifier",)}
DEPENDS |= {"family_probe": ("probe",), "family_zero_shot": ("CLAP",)}
for _kind in ("kernel_distance", "frechet_distance", "frechet_distance_infinity"):
    DEPENDS |= {f"{_kind}_clap": ("CLAP", *REFERENCE), f"{_kind}_log_mel": REFERENCE}


def compare(a: dict, b: dict) -> dict[str, dict]:
    """Differences (B minus A) of all comparable measures of two evaluations (contents of metrics.json).

    Measures of single clips are compared in pairs if both evaluations had the same prompts in the same order, others as
    independent estimates. ``probability`` is the p-value, corrected for the number of measures (Holm);
    ``larger_than_chance`` means that it is below 0.05. Measures that `incomparable` names are left out.

    Raises:
        ValueError: if no measure can be compared.
    """
    apart = incomparable(a, b)
    names = [name for name in a["metrics"] if name in b["metrics"] and name not in apart]
    if not names:
        why = f" that can be compared: they have {next(iter(apart.values()))}" if apart else ""
        raise ValueError(
            f"the two evaluations have no measure in common{why}; give two files that `musicldm evaluate` wrote"
        )
    paired = a["prompts"] == b["prompts"] and any(a["prompts"])
    table, probabilities = {}, {}
    for name in names:
        ours = [side["single"].get(name) for side in (a, b)]
        in_pairs = paired and all(ours) and len(ours[0]) == len(ours[1])
        if in_pairs:
            difference, probability = paired_difference(*map(np.array, ours))
        else:
            estimates = [Estimate(*(side["metrics"][name][key] for key in Estimate._fields)) for side in (a, b)]
            difference, probability = unpaired_difference(*estimates)
        probabilities[name] = probability
        values = {"a": a["metrics"][name]["value"], "b": b["metrics"][name]["value"]}
        table[name] = values | difference._asdict() | {"in_pairs": in_pairs}
    for name, probability in holm(probabilities).items():
        table[name] |= {"probability": probability, "larger_than_chance": probability < 0.05}
    return table


def incomparable(a: dict, b: dict) -> dict[str, str]:
    """Measures that both evaluations have, but with another CLAP, reference, index, classifier or probe, and which."""
    ours, theirs = (side.get("sources") or {} for side in (a, b))
    found = {}
    for name in a["metrics"]:
        if name in b["metrics"] and ours and theirs:
            differing = [source for source in DEPENDS.get(name, ()) if _differ(source, ours, theirs)]
            if differing:
                found[name] = f"another {' and another '.join(differing)}"
    return found


def _differ(source: str, a: dict, b: dict) -> bool:
    """Whether both ``a`` and ``b`` name their ``source``, and the names differ."""
    return source in a and source in b and a[source] != b[source]
