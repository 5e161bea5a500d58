"""Potentials: constraints, experts and critics that multiply a language model."""

from motes.lm_bridge.potentials.algebra import (
    Coerced as Coerced,
    Product as Product,
    Quotient as Quotient,
    coerce as coerce,
)
from motes.lm_bridge.potentials.byte_dfa import ByteDfa as ByteDfa
from motes.lm_bridge.potentials.contract import Critic as Critic, Potential as Potential
from motes.lm_bridge.potentials.critics import (
    Classifier as Classifier,
    Predicate as Predicate,
)
from motes.lm_bridge.potentials.expert import Expert as Expert, expert as expert
from motes.lm_bridge.potentials.languages import (
    containing_words as containing_words,
    json_schema as json_schema,
    language_of_regex as language_of_regex,
    phrases as phrases,
    regex as regex,
    stopping_at as stopping_at,
    without as without,
)
from motes.lm_bridge.potentials.laws import check_potential as check_potential
from motes.lm_bridge.potentials.table import (
    TablePotential as TablePotential,
    compile_language as compile_language,
)
from motes.lm_bridge.potentials.token_weights import (
    LengthWindow as LengthWindow,
    TokenWeights as TokenWeights,
    ban_tokens as ban_tokens,
)
