# SPDX-License-Identifier: MIT
set(arguments ${CMAKE_CURRENT_LIST_DIR})
set(imgtool ${PROJECT_SOURCE_DIR}/tools/imgtool)
if(NOT TARGET imgtool)
	set(fuzz_skip "the programs are not built")
	return()
endif()
file(GLOB imgtool_sources CONFIGURE_DEPENDS ${imgtool}/*.c)
# The program's own main() gives its tables away: see imgtool.c.
set_source_files_properties(${imgtool}/main.c PROPERTIES COMPILE_DEFINITIONS
	"main=imgtool_main;cli_main=arguments_take_program;signals_install=arguments_no_signals"
	COMPILE_OPTIONS -Wno-missing-prototypes)
get_target_property(fuzz_libraries imgtool LINK_LIBRARIES)
set(fuzz_includes ${imgtool} $<TARGET_PROPERTY:imgtool,INCLUDE_DIRECTORIES>)
set(fuzz_files ${arguments}/values.c ${arguments}/imgtool.c ${arguments}/imgvm.c ${imgtool_sources})
if(TARGET imgvm_core)
	list(APPEND fuzz_files ${PROJECT_SOURCE_DIR}/tools/imgvm/options.c)
	set_source_files_properties(${arguments}/imgvm.c PROPERTIES COMPILE_DEFINITIONS FUZZ_HAS_IMGVM
		INCLUDE_DIRECTORIES ${PROJECT_SOURCE_DIR}/tools/imgvm)
endif()
