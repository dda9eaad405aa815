"""Adapters of the vault's port: one module per kind of store."""
