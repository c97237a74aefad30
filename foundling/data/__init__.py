# SPDX-License-Identifier: Apache-2.0
"""Where text comes from and how it is prepared — sources, the built-in corpora, the held-out split."""
