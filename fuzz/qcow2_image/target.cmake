# SPDX-License-Identifier: MIT
# templates: qcow2
set(fuzz_libraries fuzz_lib)
