r"""Regular constraints as device tables over the token vocabulary.

`next[s, c]` is the state after a token of class $c$ and `cost[s, c]` the number of tokens
that must still come, that token included, until the text may end: a token is allowed when
its cost fits into the budget, so no particle starts what it cannot finish. Tokens that
act alike share a class. Read `byte_dfa.py` for the automata.
"""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from motes.lm_bridge.potentials.byte_dfa import ByteDfa
from motes.lm_bridge.potentials.contract import Budget, Potential

FAR = 2**30
"""The cost of what can never be finished."""
DEAD = -1


class TablePotential(Potential):
    """A constraint whose state is an integer; weights are zero or one.

    Attributes:
        next: Next state for each state and class; where forbidden, it means nothing.
        cost: Tokens until the text may end, this one included; 0 where EOS is allowed.
        token_class: Class of each token id.
        vocab_size: Number of token ids.
        eos_ids: Ids that end a text.
    """

    next: Int[Array, "S C"]
    cost: Int[Array, "S C"]
    token_class: Int[Array, " V"]
    vocab_size: int = eqx.field(static=True)
    eos_ids: tuple[int, ...] = eqx.field(static=True)

    @property
    def num_states(self) -> int:
        """Return the number of states from which some text can be finished."""
        return self.next.shape[0]

    @property
    def min_tokens(self) -> int:
        """Return the length of the shortest text that satisfies the constraint."""
        return int(self.cost[0].min())

    def init(self, num_particles: int, max_tokens: int) -> Int[Array, " N"]:
        return jnp.zeros(num_particles, jnp.int32)

    def log_weights(
        self, state: Int[Array, " N"], budget: Budget
    ) -> Float[Array, "N V"]:
        left = jnp.broadcast_to(jnp.asarray(budget), state.shape)[:, None]
        return jnp.where(self.cost[state] <= left, 0.0, -jnp.inf)[:, self.token_class]

    def log_increment(
        self, state: Int[Array, " N"], tokens: Int[Array, " N"], budget: Budget
    ) -> Float[Array, " N"]:
        cost = self.cost[state, self.token_class[tokens]]
        left = jnp.broadcast_to(jnp.asarray(budget), cost.shape)
        return jnp.where(cost <= left, 0.0, -jnp.inf)

    def step(
        self,
        state: Int[Array, " N"],
        tokens: Int[Array, " N"],
        active: Bool[Array, " N"],
    ) -> Int[Array, " N"]:
        return jnp.where(active, self.next[state, self.token_class[tokens]], state)


def compile_language(
    language: ByteDfa,
    token_bytes: Sequence[bytes],
    eos_ids: Sequence[int],
    call: str = "compile_language",
) -> TablePotential:
    """Return the constraint that a text's bytes belong to a language.

    Args:
        language: An automaton over bytes.
        token_bytes: The bytes of each token id; ids without bytes are never drawn.
        eos_ids: Ids that end a text, whatever their bytes.
        call: The name that errors give.

    Raises:
        ValueError: If no text over these tokens belongs to the language.
    """
    width = max((len(spelled) for spelled in token_bytes), default=0)
    padded = np.zeros((len(token_bytes), width), np.int64)
    lengths = np.array([len(spelled) for spelled in token_bytes])
    for token, spelled in enumerate(token_bytes):
        padded[token, : len(spelled)] = list(spelled)
    state = np.repeat(np.arange(len(language.next))[:, None], len(token_bytes), axis=1)
    for column in range(width):
        longer = lengths > column
        state[:, longer] = language.next[state[:, longer], padded[longer, column][None]]
    state[:, lengths == 0] = DEAD
    return from_transitions(state, language.accepting, eos_ids, call)


def from_transitions(
    moves: np.ndarray, accepting: np.ndarray, eos_ids: Sequence[int], call: str
) -> TablePotential:
    """Return the constraint of an automaton over tokens whose start is state 0.

    Args:
        moves: Next state for each state and token; -1 forbids.
        accepting: In which states a text may end.
        eos_ids: Ids that end a text; their moves are not read.
        call: The name that errors give.

    Raises:
        ValueError: If no text satisfies the constraint, or no id ends a text.
    """
    if not eos_ids:
        raise ValueError(f"{call}: eos_ids must hold at least one id, got none.")
    moves = np.array(moves)
    moves[:, list(eos_ids)] = DEAD
    classes, token_class = np.unique(moves, axis=1, return_inverse=True)
    token_class = token_class.reshape(-1)
    distance = _distances(classes, accepting)
    if distance[0] >= FAR:
        raise ValueError(
            f"{call}: constraint must allow some text over the vocabulary, got one that "
            f"none of its {moves.shape[1]} tokens can satisfy."
        )
    cost = np.where(classes < 0, FAR, np.minimum(distance[classes] + 1, FAR))
    # One class more, for EOS.
    cost = np.column_stack([cost, np.where(accepting, 0, FAR)])
    after = np.column_stack([classes.clip(0), np.arange(len(moves))])
    token_class[list(eos_ids)] = classes.shape[1]
    alive = np.flatnonzero(distance < FAR)
    number = np.zeros(len(moves), np.int32)
    number[alive] = np.arange(alive.size)
    return TablePotential(
        jnp.asarray(number[after[alive]], jnp.int32),
        jnp.asarray(cost[alive], jnp.int32),
        jnp.asarray(token_class, jnp.int32),
        moves.shape[1],
        tuple(eos_ids),
    )


def _distances(moves: np.ndarray, accepting: np.ndarray) -> np.ndarray:
    """Return the fewest tokens from each state to an accepting one."""
    distance = np.where(accepting, 0, FAR)
    while True:
        after = np.where(moves < 0, FAR, distance[moves]).min(axis=1, initial=FAR)
        shorter = np.minimum(distance, np.minimum(after + 1, FAR))
        if (shorter == distance).all():
            return distance
        distance = shorter


def intersect_tables(left: TablePotential, right: TablePotential) -> TablePotential:
    """Return one table for two constraints, with the distances of both together."""
    width = right.num_states
    a = np.repeat(np.arange(left.num_states), width)
    b = np.tile(np.arange(width), left.num_states)
    left_class, right_class = (
        np.asarray(left.token_class),
        np.asarray(right.token_class),
    )
    left_cost = np.asarray(left.cost)[a][:, left_class]
    right_cost = np.asarray(right.cost)[b][:, right_class]
    alive = (left_cost < FAR) & (right_cost < FAR)
    moves = np.asarray(left.next)[a][:, left_class].astype(np.int64) * width
    moves += np.asarray(right.next)[b][:, right_class]
    accepting = alive[:, left.eos_ids[0]]
    return from_transitions(
        np.where(alive, moves, DEAD), accepting, left.eos_ids, "product"
    )
