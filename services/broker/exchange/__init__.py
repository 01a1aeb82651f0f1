"""The exchange as a pure state machine of account, orders and transactions, and its ledger on disk."""
