# SPDX-License-Identifier: MIT
set(fuzz_libraries imgvm_core)
set(fuzz_includes ${PROJECT_SOURCE_DIR}/tests/imgvm)
if(NOT TARGET imgvm_core)
	set(fuzz_skip "imgvm is not built")
endif()
