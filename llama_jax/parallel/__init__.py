"""Meshes, sharding rules and distributed arrays, for any pytree; knows no model."""
