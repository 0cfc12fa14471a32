"""Campaigns: the same script on many fresh guests, and what came of them."""
