"""Trunks: the networks that weights are loaded into and task heads are grafted on."""
