"""Checks of a Ray cluster before work goes to it, in families: each measures on the nodes, then judges what it saw.

`findings` says what a check finds, `nodes` asks all nodes in bounded time, `run` runs the checks one by one.
"""
