# SPDX-License-Identifier: MIT
# Flags of every target: they are carried by the interface library img_flags.

add_library(img_flags INTERFACE)
target_compile_definitions(img_flags INTERFACE _GNU_SOURCE _FILE_OFFSET_BITS=64)
target_compile_options(img_flags INTERFACE -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes
	-Wmissing-prototypes -Wvla -fno-strict-aliasing)
target_link_libraries(img_flags INTERFACE Threads::Threads)

if(IMG_WERROR)
	target_compile_options(img_flags INTERFACE -Werror)
endif()
if(IMG_SANITIZE)
	target_compile_options(img_flags INTERFACE -fsanitize=${IMG_SANITIZE} -fno-omit-frame-pointer)
	target_link_options(img_flags INTERFACE -fsanitize=${IMG_SANITIZE})
	# What the optimiser knows of the range of a number is hidden behind the checks: false alarms.
	if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
		target_compile_options(img_flags INTERFACE -Wno-format-truncation)
	endif()
	if(IMG_SANITIZE MATCHES "undefined")
		target_compile_options(img_flags INTERFACE -fno-sanitize-recover=all)
	endif()
	if(IMG_SANITIZE MATCHES "memory")
		target_compile_options(img_flags INTERFACE -fsanitize-memory-track-origins)
		# The list of what is wrapped is the list of WRAP() in the file.
		set(wrap ${CMAKE_CURRENT_LIST_DIR}/msan_wrap.c)
		file(STRINGS ${wrap} wrapped REGEX "^WRAP\\(")
		list(TRANSFORM wrapped REPLACE "^WRAP\\([^,]*, ([A-Za-z0-9_]+),.*" "-Wl,--wrap=\\1")
		target_link_options(img_flags INTERFACE ${wrapped})
		add_library(img_msan STATIC ${wrap})
		target_compile_definitions(img_msan PRIVATE _GNU_SOURCE _FILE_OFFSET_BITS=64)
		target_compile_options(img_msan PRIVATE -fsanitize=memory -g -O1 -Wall -Wextra)
		target_link_libraries(img_msan PUBLIC PkgConfig::libcrypto)
		target_link_libraries(img_flags INTERFACE img_msan)
	endif()
elseif(CMAKE_BUILD_TYPE MATCHES "Rel")
	target_compile_definitions(img_flags INTERFACE _FORTIFY_SOURCE=2)
	target_compile_options(img_flags INTERFACE -fstack-protector-strong)
endif()

# Under a sanitizer the runtime's symbols are resolved in the program, so undefined ones are to be expected there.
if(NOT IMG_SANITIZE)
	set(IMG_NO_UNDEFINED -Wl,-z,defs)
endif()
