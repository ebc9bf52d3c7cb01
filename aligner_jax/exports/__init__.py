"""Writes an adapted base for other engines, and checks what they make of it."""
