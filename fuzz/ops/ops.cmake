# SPDX-License-Identifier: MIT
# What targets of programs of operations are made from: the model of the tests, and a host without chance and clock.
set(fuzz_libraries fuzz_ops)
set(fuzz_files ${CMAKE_CURRENT_LIST_DIR}/mutate.c)
set(fuzz_link_options -Wl,--wrap=getrandom -Wl,--wrap=clock_gettime)
if(NOT TARGET fuzz_ops)
	set(fixed ${PROJECT_SOURCE_DIR}/tests/crash)
	set(ops ${CMAKE_CURRENT_LIST_DIR})
	add_library(fuzz_ops STATIC EXCLUDE_FROM_ALL ${ops}/ops.c ${ops}/templates.c ${ops}/history.c ${ops}/judge.c
		${fixed}/fixed_host.c)
	target_include_directories(fuzz_ops PUBLIC ${ops} ${fixed} ${CMAKE_CURRENT_SOURCE_DIR})
	target_link_libraries(fuzz_ops PUBLIC test_model)
	if(CMAKE_SIZEOF_VOID_P EQUAL 4)
		target_compile_options(fuzz_ops PRIVATE -Wno-conversion)
	endif()
endif()
