"""What is compiled ahead of time: the CPU kernels at installation, the GPU kernels for their report.

Nothing that serves imports it.
"""
