# SPDX-License-Identifier: Apache-2.0
"""Programs of a few minutes, each showing what one system is known for: a table, a figure, a line of docs/results."""
