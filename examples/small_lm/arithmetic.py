"""Worked arithmetic: questions, steps on lines of their own, and an answer.

A problem is a chain of two to four operations on small whole numbers, told as an
expression or as a story. Everything is a function of the generator that is passed in.
"""

import numpy as np

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry")
THINGS = (
    "apples",
    "books",
    "coins",
    "eggs",
    "letters",
    "pears",
    "ribbons",
    "shillings",
)
PROMPTS = (
    "Question: What is {}?\n",
    "Question: Compute {}.\n",
    "Question: Find {}.\n",
)


def problems(seed: int, count: int) -> list[str]:
    """Return `count` worked problems."""
    rng = np.random.default_rng(seed)
    kinds = (chain, precedence, story)
    return [kinds[i](rng) for i in rng.choice(3, size=count, p=[0.35, 0.3, 0.35])]


def chain(rng: np.random.Generator) -> str:
    """Return sums and differences from left to right: `12 + 30 - 7`."""
    value = int(rng.integers(2, 60))
    expression, steps = str(value), []
    for _ in range(rng.integers(2, 5)):
        operator, operand, value_after = _add_or_subtract(rng, value)
        expression += f" {operator} {operand}"
        steps.append(f"{value} {operator} {operand} = {value_after}")
        value = value_after
    return _render(rng, expression, steps, value)


def precedence(rng: np.random.Generator) -> str:
    """Return a sum with a product in it: `23 + 4 * 12`."""
    left, right = (int(x) for x in rng.integers(2, 13, size=2))
    product = left * right
    steps = [f"{left} * {right} = {product}"]
    operator, operand, value = _add_or_subtract(rng, product)
    if operator == "+" and rng.random() < 0.6:
        expression = f"{operand} + {left} * {right}"
        steps.append(f"{operand} + {product} = {value}")
    else:
        expression = f"{left} * {right} {operator} {operand}"
        steps.append(f"{product} {operator} {operand} = {value}")
    return _render(rng, expression, steps, value)


def story(rng: np.random.Generator) -> str:
    """Return a chain told in words."""
    name, thing = str(rng.choice(NAMES)), str(rng.choice(THINGS))
    value = int(rng.integers(2, 60))
    text, steps = f"Question: {name} has {value} {thing}.", []
    for _ in range(rng.integers(1, 4)):
        operator, operand, value_after = _add_or_subtract(rng, value)
        verb = rng.choice(("finds", "buys") if operator == "+" else ("loses", "sells"))
        text += f" {name} {verb} {operand} {thing}."
        steps.append(f"{value} {operator} {operand} = {value_after}")
        value = value_after
    text += f" How many {thing} does {name} have?\n"
    return text + _solution(steps, value)


def _add_or_subtract(rng: np.random.Generator, value: int) -> tuple[str, int, int]:
    """Return an operator, its operand, and what it makes of `value`."""
    if value > 2 and rng.random() < 0.5:
        operand = int(rng.integers(1, min(value, 60)))
        return "-", operand, value - operand
    operand = int(rng.integers(1, 60))
    return "+", operand, value + operand


def _render(
    rng: np.random.Generator, expression: str, steps: list[str], value: int
) -> str:
    return str(rng.choice(PROMPTS)).format(expression) + _solution(steps, value)


def _solution(steps: list[str], value: int) -> str:
    return "\n".join(steps) + f"\nAnswer: {value}"
