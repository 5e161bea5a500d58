"""A trace: one run of a model, as a pytree.

It holds the choices, the return value, the log density and the arguments of the run, so
a batch of traces is a trace whose leaves have a leading axis.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from motes.ppl.choices import Masked
from motes.ppl.errors import AddressError, read_path
from motes.ppl.nesting import Choices


@jax.tree_util.register_pytree_with_keys_class
class Trace:
    """One run of a model.

    Attributes:
        choices: Nested dict with the value at each address; a choice made only in some
            branch is `Masked`.
        return_value: What the model returned.
        log_density: Log density of all choices and factors, in nats.
        args: The arguments that the model was run on.
    """

    def __init__(
        self, choices: Choices, return_value: Any, log_density: Any, args: tuple
    ):
        self.choices = choices
        self.return_value = return_value
        self.log_density: Float[Array, ...] = log_density
        self.args = args

    def __getitem__(self, address: str | tuple[str, ...]) -> Any:
        """Return the value at an address, or the choices in a scope."""
        path = read_path("trace", address)
        node: Any = self.choices
        for name in path:
            if not isinstance(node, dict) or name not in node:
                raise AddressError(
                    f"trace: {'/'.join(path)!r} must be an address of the trace, which "
                    f"has {sorted(_lines(self.choices))}."
                )
            node = node[name]
        return node

    def __repr__(self) -> str:
        lines = ["Trace"]
        shape = getattr(self.log_density, "shape", ())
        known = not shape and not isinstance(self.log_density, jax.core.Tracer)
        if known and isinstance(self.log_density, jax.Array | np.ndarray | float):
            lines.append(f"  log_density {float(self.log_density):.6g}")
        else:
            lines.append(f"  log_density {_describe(self.log_density)}")
        return "\n".join(lines + _tree_lines(self.choices, "  "))

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(self.args)
        traced = [x if is_traced(x) else None for x in leaves]
        static = tuple(None if is_traced(x) else x for x in leaves)
        children = (
            (jax.tree_util.GetAttrKey("choices"), self.choices),
            (jax.tree_util.GetAttrKey("return_value"), self.return_value),
            (jax.tree_util.GetAttrKey("log_density"), self.log_density),
            (jax.tree_util.GetAttrKey("args"), traced),
        )
        return children, (tree, static)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> "Trace":
        tree, static = aux
        choices, return_value, log_density, traced = children
        pairs = zip(traced, static, strict=True)
        leaves = [constant if x is None else x for x, constant in pairs]
        args = jax.tree.unflatten(tree, leaves)
        return cls(choices, return_value, log_density, args)


def is_traced(leaf: Any) -> bool:
    """Whether an argument is traced: arrays and floats are; ints, bools, strings not."""
    kinds = (jax.Array, np.ndarray, np.generic, float, complex, jax.ShapeDtypeStruct)
    return isinstance(leaf, kinds)


def _describe(value: Any) -> str:
    if isinstance(value, Masked):
        return f"masked {_describe(value.value)}"
    leaves = jax.tree.leaves(value)
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in leaves if hasattr(x, "dtype"))


def _tree_lines(node: Choices, indent: str) -> list[str]:
    lines = []
    for name, value in node.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}/", *_tree_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}  {_describe(value)}")
    return lines


def _lines(node: Choices, prefix: str = "") -> list[str]:
    lines = []
    for name, value in node.items():
        inner = isinstance(value, dict)
        lines += _lines(value, f"{prefix}{name}/") if inner else [prefix + name]
    return lines
