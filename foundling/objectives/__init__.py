# SPDX-License-Identifier: Apache-2.0
"""Training objectives. An objective has `normalizers(batch)` and `__call__(model, batch) -> Loss`."""
