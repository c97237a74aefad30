# SPDX-License-Identifier: Apache-2.0
"""What a raised model is measured with — tasks and metrics, and the baselines its figures stand beside."""
