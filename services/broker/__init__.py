"""The paper broker: a stand-in for OANDA that replays a data set over OANDA's REST interface.

No real money moves through it: the account, its balance and its fills exist only in a local SQLite file. The
trader uses it in paper mode through the same client as OANDA, so that the code that trades with real money is
the code that was tested.
"""
