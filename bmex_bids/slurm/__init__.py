# SPDX-License-Identifier: Apache-2.0
"""Work for a SLURM cluster: its commands, the scripts of jobs, and what is submitted."""
