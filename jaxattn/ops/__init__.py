"""Attention and its building blocks: each operation's definition, and a fast version equal to it.

What is only for XLA's CPU backend lies in `jaxattn.ops.cpu`.
"""
