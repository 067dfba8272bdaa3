# SPDX-License-Identifier: MIT
# Toolchain of the preset s390x, for the big-endian build: clang makes the code (Debian's gcc for s390x cannot be installed
# beside gcc-multilib), the libraries come from the folder that scripts/s390x-root made, and qemu-user runs the tests.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR s390x)
set(IMG_S390X_ROOT "$ENV{LIBIMG_S390X_ROOT}" CACHE PATH "Folder with the libraries of s390x")
if(NOT EXISTS ${IMG_S390X_ROOT}/lib/ld64.so.1)
	message(FATAL_ERROR "no s390x libraries: export LIBIMG_S390X_ROOT=$(scripts/s390x-root)")
endif()
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES IMG_S390X_ROOT)

set(CMAKE_C_COMPILER clang-14)
set(CMAKE_OBJCOPY s390x-linux-gnu-objcopy)
# In the flags, not in variables of their own, so that whoever calls the compiler by hand has them, too.
set(CMAKE_C_FLAGS_INIT "--target=s390x-linux-gnu --sysroot=${IMG_S390X_ROOT}")
set(CMAKE_LIBRARY_ARCHITECTURE s390x-linux-gnu)
set(CMAKE_FIND_ROOT_PATH ${IMG_S390X_ROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(ENV{PKG_CONFIG_LIBDIR} ${IMG_S390X_ROOT}/usr/lib/s390x-linux-gnu/pkgconfig:${IMG_S390X_ROOT}/usr/share/pkgconfig)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${IMG_S390X_ROOT})
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-s390x-static -L ${IMG_S390X_ROOT})
