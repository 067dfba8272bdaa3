# SPDX-License-Identifier: MIT
set(arguments ${CMAKE_CURRENT_LIST_DIR})
set(imgtool ${PROJECT_SOURCE_DIR}/tools/imgtool)
if(NOT TARGET tools_common)
	set(fuzz_skip "the programs are not built")
	return()
endif()
file(GLOB imgtool_sources CONFIGURE_DEPENDS ${imgtool}/*.c)
# The program's own main() gives its tables away: see imgtool.c.
set_source_files_properties(${imgtool}/main.c PROPERTIES COMPILE_DEFINITIONS
	"main=imgtool_main;cli_main=arguments_take_program;signals_install=arguments_no_signals"
	COMPILE_OPTIONS -Wno-missing-prototypes)
set(fuzz_libraries tools_common PkgConfig::zlib PkgConfig::libzstd)
set(fuzz_files ${arguments}/values.c ${arguments}/imgtool.c ${arguments}/imgvm.c ${imgtool_sources})
set(fuzz_includes ${imgtool})
if(TARGET imgvm_core)
	list(APPEND fuzz_files ${PROJECT_SOURCE_DIR}/tools/imgvm/options.c)
	set_source_files_properties(${arguments}/imgvm.c PROPERTIES COMPILE_DEFINITIONS FUZZ_HAS_IMGVM
		INCLUDE_DIRECTORIES ${PROJECT_SOURCE_DIR}/tools/imgvm)
endif()
