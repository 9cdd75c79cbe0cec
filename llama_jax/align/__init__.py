"""Alignment: from a pretrained model to a chat model.

Arrays of one answer share one alignment: index t holds everything about the choice of token t+1
(log-probability, value, reward, advantage), and `mask` is true where the policy chose that token.
"""
