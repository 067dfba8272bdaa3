# SPDX-License-Identifier: MIT
# fuzz_lib: what targets on images share. It is linked with img_fixed, the library's objects without chance and clock (fixed.h).
add_custom_command(OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/libimg_fixed.a
	COMMAND ${CMAKE_OBJCOPY} --redefine-sym getrandom=fixed_getrandom --redefine-sym clock_gettime=fixed_clock_gettime
		$<TARGET_FILE:img_internal> ${CMAKE_CURRENT_BINARY_DIR}/libimg_fixed.a
	DEPENDS img_internal VERBATIM)
if(NOT IMG_FUZZ AND CMAKE_NM)
	img_add_test(fuzz-fixed LABEL fuzz TIMEOUT 60 COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/lib/test-fixed.sh ${CMAKE_NM}
		${CMAKE_CURRENT_BINARY_DIR}/libimg_fixed.a)
endif()
add_custom_target(img_fixed_made DEPENDS ${CMAKE_CURRENT_BINARY_DIR}/libimg_fixed.a)

file(GLOB fuzz_lib_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/lib/*.c)
add_library(fuzz_lib STATIC EXCLUDE_FROM_ALL ${fuzz_lib_sources} ${PROJECT_SOURCE_DIR}/tests/model/memfs.c)
add_dependencies(fuzz_lib img_fixed_made)
set_target_properties(fuzz_lib PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(fuzz_lib PUBLIC ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/lib
	${PROJECT_SOURCE_DIR}/tests/model $<TARGET_PROPERTY:img_internal,INTERFACE_INCLUDE_DIRECTORIES>)
target_link_libraries(fuzz_lib PUBLIC ${CMAKE_CURRENT_BINARY_DIR}/libimg_fixed.a img_flags PkgConfig::zlib
	PkgConfig::libzstd PkgConfig::libxxhash ${CMAKE_DL_LIBS} Threads::Threads)
# What the library's codecs need of it, where it is there.
foreach(codec BZip2::BZip2 PkgConfig::liblzma PkgConfig::libdeflate)
	if(TARGET ${codec})
		target_link_libraries(fuzz_lib PUBLIC ${codec})
	endif()
endforeach()
# Sizes here are small and its own: no casts for size_t of 32 bits.
if(CMAKE_SIZEOF_VOID_P EQUAL 4)
	target_compile_options(fuzz_lib PRIVATE -Wno-conversion)
endif()

# For afl-fuzz itself, so nothing of it may be instrumented: see afl/mutator.c.
if(NOT IMG_FUZZ AND NOT IMG_SANITIZE)
	add_library(fuzz_afl_mutator MODULE afl/mutator.c)
	target_link_libraries(fuzz_afl_mutator PRIVATE fuzz_lib img_flags)
	set_target_properties(fuzz_afl_mutator PROPERTIES PREFIX "")
endif()
