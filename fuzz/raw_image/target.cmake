# SPDX-License-Identifier: MIT
# templates: raw
set(fuzz_libraries fuzz_lib)
