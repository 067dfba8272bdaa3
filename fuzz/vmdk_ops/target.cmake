# SPDX-License-Identifier: MIT
include(${CMAKE_CURRENT_SOURCE_DIR}/ops/ops.cmake)
