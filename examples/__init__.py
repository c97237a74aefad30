# SPDX-License-Identifier: Apache-2.0
"""Programs that show one thing each, from training to the figure: `python -m examples.NAME`."""
