"""Pure maths on arrays: every argument explicit, no configuration, no state.

Letters, here and everywhere: B batch, T query positions, S key positions, D model width, N query
heads, K key/value heads, G = N/K, H head width, F MLP width, V vocabulary, L layers.
"""
