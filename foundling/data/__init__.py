# SPDX-License-Identifier: Apache-2.0
"""Data: sources, ingestion into shards, the held-out split, samples, tokens, batches, data sets, transforms."""
