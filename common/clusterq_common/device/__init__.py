"""Where work runs: devices, processes, compiled and recorded steps."""
