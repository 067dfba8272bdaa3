# SPDX-License-Identifier: MIT
# templates: all
set(fuzz_libraries fuzz_lib)
