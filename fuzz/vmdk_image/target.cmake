# SPDX-License-Identifier: MIT
set(fuzz_libraries fuzz_lib)
