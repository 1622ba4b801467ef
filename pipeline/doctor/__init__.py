"""Checks of a Ray cluster before jobs run on it. Each module measures on the nodes, then judges the measurements.

`findings` defines the results of a check, `nodes` queries all nodes in bounded time, `run` runs the checks in order.
"""
