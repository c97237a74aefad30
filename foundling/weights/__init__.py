# SPDX-License-Identifier: Apache-2.0
"""Model directories. One is a Hugging Face directory that also says how it came to be."""
