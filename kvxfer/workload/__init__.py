"""Processes that really move KV blocks, so that a collector has something true to collect.

A worker is a pair: a *prefill* process that fills the blocks of a request in its pool, and a *decode* process that
pulls them out and records each pull (pull mode, as vLLM's NIXL connector works). What may live here moves bytes or says
which bytes to move; aggregation, printing and exit codes stay out.
"""
