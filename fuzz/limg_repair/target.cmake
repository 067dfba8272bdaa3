# SPDX-License-Identifier: MIT
# templates: limg
set(fuzz_libraries fuzz_lib)
