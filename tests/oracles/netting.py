"""A netting account, slow and simple: every unit is a ticket with its own price; the oldest closes first."""

from decimal import Decimal


class NaiveAccount:
    """An account that trades single units."""

    def __init__(self) -> None:
        self.tickets: list[Decimal] = []  # opening prices
        self.side = 0
        self.realized = Decimal(0)

    def trade(self, units: int, bid: Decimal, ask: Decimal) -> None:
        """Buy (`units` above 0) or sell units one by one."""
        side = 1 if units > 0 else -1
        price = ask if side > 0 else bid
        for _ in range(abs(units)):
            if self.tickets and self.side != side:
                self.realized += (price - self.tickets.pop(0)) * self.side
            else:
                self.side = side
                self.tickets.append(price)

    @property
    def units(self) -> int:
        """Net units."""
        return self.side * len(self.tickets)

    def unrealized(self, bid: Decimal, ask: Decimal) -> Decimal:
        """Profit of closing all tickets now."""
        price = bid if self.side > 0 else ask
        return sum(((price - ticket) * self.side for ticket in self.tickets), Decimal(0))
