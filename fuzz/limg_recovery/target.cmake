# SPDX-License-Identifier: MIT
# templates: limg-journal
set(fuzz_libraries fuzz_lib)
