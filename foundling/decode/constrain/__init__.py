# SPDX-License-Identifier: Apache-2.0
"""Structured output: answers that follow a JSON Schema, a regular expression, a grammar, or are one of several
texts."""
