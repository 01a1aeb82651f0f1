"""n-step returns, term by term, as in the formula."""

from collections.abc import Sequence


def n_step_return(
    rewards: Sequence[float],
    values: Sequence[float],
    step: int,
    *,
    discount: float,
    n: int,
    final_value: float,
) -> float:
    """Σ_{i<m} γ^i u_{t+i} + γ^m v_{t+m} with m = min(n, T - t) and v_T the final value."""
    steps = min(n, len(rewards) - step)
    total = sum(discount**i * rewards[step + i] for i in range(steps))
    end = step + steps
    bootstrap = final_value if end == len(rewards) else values[end]
    return total + discount**steps * bootstrap
