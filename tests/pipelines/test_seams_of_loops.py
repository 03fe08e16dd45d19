"""What the circle of time is for: the end of a loop leads into its start as the music goes on elsewhere."""

import numpy as np
import pytest

from musicldm.analysis.seams import loop_quantile
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling import make_scheduler


@pytest.mark.slow
def test_seams_of_the_bundled_model_change_no_more_than_the_music():
    """The rank of the change at the seam, among all of the loop; without the circle nearly the largest."""
    pipeline = MusicLDMPipeline.from_pretrained("mini")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler("dpm++", pipeline.scheduler)
    prompts = ["a funky bass and drums groove", "string quartet, lively", "solo piano, fast"]
    options = {"num_inference_steps": 8, "guidance_scale": 3.0, "guidance_interval": (0.2, 0.7), "seed": 5}
    ranks = {}
    for loop in (True, False):
        music = pipeline(prompts, audio_length_in_s=2.56, loop=loop, **options).audios
        ranks[loop] = np.mean([loop_quantile(one, pipeline.sampling_rate) for one in music])
    assert ranks[True] < 0.75 < 0.85 < ranks[False]
