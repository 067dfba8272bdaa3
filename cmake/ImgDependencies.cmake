# SPDX-License-Identifier: MIT
# What we link against. A missing one is named together with the Debian package that brings it.

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_program(IMG_PKG_CONFIG NAMES pkg-config pkgconf)
if(NOT IMG_PKG_CONFIG)
	message(FATAL_ERROR "pkg-config is missing (Debian package: pkg-config; scripts/setup installs what is missing)")
endif()
find_package(PkgConfig REQUIRED QUIET)

# img_need(<module> <debian package>): imported target PkgConfig::<module>, or the error that says what to install.
set(img_missing "")
macro(img_need module package)
	pkg_check_modules(${module} QUIET IMPORTED_TARGET ${module})
	if(NOT ${module}_FOUND)
		string(APPEND img_missing "\n  ${module}: Debian package ${package}")
	endif()
endmacro()

img_need(zlib zlib1g-dev)
img_need(libzstd libzstd-dev)
img_need(libcrypto libssl-dev) # its headers: it is loaded when a SHA-256 is asked for
img_need(libxxhash libxxhash-dev)
if(IMG_TOOLS)
	img_need(jansson libjansson-dev)
endif()
if(IMG_TESTS)
	img_need(cmocka libcmocka-dev)
endif()
# Without it the tools confine themselves by Landlock alone, and --sandbox=require refuses.
option(IMG_SECCOMP "the tools confine themselves by seccomp" ON)
if(IMG_TOOLS AND IMG_SECCOMP)
	pkg_check_modules(libseccomp QUIET IMPORTED_TARGET libseccomp)
	if(NOT libseccomp_FOUND)
		message(WARNING "libseccomp is missing (Debian package libseccomp-dev): the tools are built without seccomp")
	endif()
endif()
if(img_missing)
	message(FATAL_ERROR "missing dependencies (scripts/setup installs them):${img_missing}")
endif()
