"""Execution of the work: devices, processes, compiled and recorded steps."""
