"""The papers' experiments at full scale: `python -m wotlab.experiments NAME --data ROOT`.

Each measures one table, goes on where it was stopped, and writes one record a number beside the
paper's own.
"""
