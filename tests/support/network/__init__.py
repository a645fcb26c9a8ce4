"""Servers, nodes and deployments over loopback."""
