# SPDX-License-Identifier: Apache-2.0
"""Floor 2: what is to be learnt. An objective is `counts(batch)` and `__call__(model, batch) -> Loss`."""
