# SPDX-License-Identifier: MIT
set(copy ${CMAKE_CURRENT_LIST_DIR})
set(fuzz_libraries fuzz_lib PkgConfig::libcrypto)
set(fuzz_files ${copy}/build.c ${copy}/commands.c ${copy}/digest.c ${PROJECT_SOURCE_DIR}/tests/model/flat.c)
