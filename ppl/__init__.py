"""Models as JAX programs with traced effects."""

from motes.ppl.choices import (
    Masked as Masked,
    masked as masked,
)
from motes.ppl.densities import Density as Density
from motes.ppl.effects import factor as factor, sample as sample, scope as scope
from motes.ppl.errors import AddressError as AddressError, ShapeError as ShapeError
from motes.ppl.model import Model as Model, Proposal as Proposal, model as model
from motes.ppl.nesting import Choices as Choices, merge as merge
from motes.ppl.numpyro_bridge import from_numpyro as from_numpyro
from motes.ppl.plates import (
    lane_key as lane_key,
    vmap as plate,  # noqa: F401
    vmap as vmap,
    vmap_lanes as vmap_lanes,
)
from motes.ppl.render import render as render
from motes.ppl.selection import Selection as Selection, select as select
from motes.ppl.trace import Trace as Trace
from motes.ppl.transforms import (
    Conditioned as Conditioned,
    condition as condition,
    do as do,
)
from motes.ppl.unconstrained import (
    Unconstrained as Unconstrained,
    unconstrained as unconstrained,
)
