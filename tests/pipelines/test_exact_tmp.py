import numpy as np, torch, pytest
from tests.pipelines.test_text_to_music import run_batch, FAST, SCHEDULERS, make_scheduler, embed_text
def test_all(exact_pipeline):
    from diffusers import DPMSolverSDEScheduler
    base = exact_pipeline.scheduler
    for name in SCHEDULERS:
        exact_pipeline.scheduler = make_scheduler(name, base)
        a = run_batch(exact_pipeline, ["a waltz","drums","a flute"], seed=7, eta=1.0); b = run_batch(exact_pipeline, ["a flute"], seed=9, eta=1.0)
        print(name, np.abs(a[2]-b[0]).max(), np.abs(a).max(), a.dtype)
    exact_pipeline.scheduler = DPMSolverSDEScheduler.from_config(base.config)
    a = run_batch(exact_pipeline, ["a waltz","drums"], seed=7); b = run_batch(exact_pipeline, ["drums"], seed=8); print("sde", np.abs(a[1]-b[0]).max())
    exact_pipeline.scheduler = base
    l = exact_pipeline(["a waltz", "drums"], num_waveforms_per_prompt=2, seed=3, output_type="latent", **FAST).audios
    m = exact_pipeline("drums", seed=6, output_type="latent", **FAST).audios
    print("cand", (l[3]-m[0]).abs().max(), l.abs().max())
    prompts, negatives = ["drums", "a flute"], ["noise", "hum"]
    audios = exact_pipeline(prompts, negative_prompt=negatives, seed=0, output_type="pt", **FAST).audios
    embeds = [embed_text(exact_pipeline.text_encoder, exact_pipeline.tokenizer, texts) for texts in (prompts, negatives)]
    given = exact_pipeline(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], seed=0, output_type="pt", **FAST).audios
    print("prompts", (audios-given).abs().max(), audios.dtype)
    assert 0
