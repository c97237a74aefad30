# SPDX-License-Identifier: Apache-2.0
"""Floor 7: what a raised model is measured with — tasks and metrics, and the baselines its figures stand beside."""
