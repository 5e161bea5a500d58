"""Sequential Monte Carlo: one engine, two drivers, builders of programs."""

from motes.inference.smc.blocks import run_blocks as run_blocks
from motes.inference.smc.derived import TimeState as TimeState, derive as derive
from motes.inference.smc.feynman_kac import FeynmanKac as FeynmanKac
from motes.inference.smc.importance import (
    importance_sampling as importance_sampling,
    resample_particles as resample_particles,
)
from motes.inference.smc.pair import (
    auxiliary as auxiliary,
    bootstrap as bootstrap,
    guided as guided,
)
from motes.inference.smc.particles import (
    DeadParticles as DeadParticles,
    Particles as Particles,
)
from motes.inference.smc.resampling import (
    SCHEMES as SCHEMES,
    Resampled as Resampled,
    Resampler as Resampler,
    killing as killing,
    multinomial as multinomial,
    optimal as optimal,
    residual as residual,
    ssp as ssp,
    stratified as stratified,
    systematic as systematic,
)
from motes.inference.smc.run import run as run
from motes.inference.smc.smoothing import (
    History as History,
    backward_sampling as backward_sampling,
    fixed_lag as fixed_lag,
    genealogies as genealogies,
    keep_history as keep_history,
)
from motes.inference.smc.step import (
    Policy as Policy,
    advance as advance,
    finish as finish,
    start as start,
)
from motes.inference.smc.steps import steps as steps
from motes.inference.smc.variance import (
    keep_ancestors as keep_ancestors,
    relative_variance as relative_variance,
)
