"""Fused kernels that compute the networks' outputs for decisions."""
