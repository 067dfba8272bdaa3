#!/bin/bash
# SPDX-License-Identifier: MIT
# gen-corpus writes images: those that are said to be valid are, the same seed makes the same files, and no file that an
# input stands for is missing.   test.sh GENERATOR IMGTOOL
set -euo pipefail

here=$(dirname "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for part in one two; do
	"$here/../gen-corpus" "$folder/$part" --format qcow2 --mutated 1 --max-bytes 262144 --no-hostile --generator "$1" >/dev/null
done
diff -r "$folder/one" "$folder/two"
for format in raw limg qcow2 vdi vhd vhdx vmdk parallels; do
	"$here/../gen-corpus" "$folder/all" --format $format --no-hostile --generator "$1" >/dev/null
	for image in "$folder/all/$format"/template-*; do
		[ ! -d "$image" ] || image=$image/image # with the files that it names
		case $image in
		*luks*) continue ;; # which is recognised, not read
		*aliased*) # valid, and more than its file is worth
			! "$2" info -f $format "$image" >/dev/null 2>&1 || { echo "$image: read under the default budget"; exit 1; }
			"$2" info -f $format --limit expansion=1000000 "$image" >/dev/null
			continue
			;;
		esac
		"$2" info -f $format --allow-refs=dir "$image" >/dev/null
		[ ! -d "${image%/image}" ] || "$2" read -f $format --allow-refs=dir --length 512 "$image" >/dev/null # opens them all
	done
	inputs=$(find "$here/../${format}_image/corpus" -type f | wc -l)
	images=$(find "$folder/all/$format" -maxdepth 1 -name "${format}_image-*" | wc -l)
	[ "$images" -ge $((inputs / 2)) ] || { echo "$format: $images images of $inputs inputs"; exit 1; }
done
[ -f "$folder/all/vmdk/template-vmdk-cowd/extent" ]
[ "$(find "$folder/all/vdi" -path '*template-vdi-*overlay/base' | wc -l)" = 2 ]
