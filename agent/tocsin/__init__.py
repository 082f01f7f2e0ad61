"""Tocsin: a Linux security sensor whose detection content cannot hurt the host."""
