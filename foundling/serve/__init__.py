# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible server over the engine, and the playground."""
