"""The exchange as a pure state machine: accounts, orders, transactions, and the ledger that keeps them."""
