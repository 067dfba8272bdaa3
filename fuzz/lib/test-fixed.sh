#!/bin/bash
# SPDX-License-Identifier: MIT
# The library that fuzz targets are linked with takes no chance and no time but from fixed.c.   test-fixed.sh NM LIBRARY
set -euo pipefail

wanted=$("$1" "$2" 2>/dev/null | awk '$1 == "U" { print $2 }' | sort -u)
grep -qx fixed_getrandom <<<"$wanted" || { echo "$2 does not call fixed_getrandom: is this the library of fixed.h?"; exit 1; }
left=$(grep -xE 'get(random|entropy|timeofday)|arc4random.*|[de]?rand48(_r)?|[jlmn]rand48(_r)?|s?rand(om)?(_r)?|time|clock(_gettime)?|timespec_get' \
	<<<"$wanted" || true)
[ -z "$left" ] || { echo "replace these as lib.cmake does with getrandom, or an input does not do the same every time:" "$left"; exit 1; }
echo "no chance and no clock but $(grep -xE 'fixed_.*' <<<"$wanted" | tr '\n' ' ')"
