# SPDX-License-Identifier: Apache-2.0
"""Floor 3: model directories. One is a Hugging Face directory that also says how it came to be."""
