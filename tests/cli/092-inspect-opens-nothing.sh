# SPDX-License-Identifier: MIT
# What an untrusted file names is not opened to judge it: who opens one of these waits for ever, or is seen.
need strace
/usr/bin/python3 - "$SRCDIR" <<'END'
import sys
sys.path.insert(0, sys.argv[1] + "/tests/images/gen")
import hostile_files
for case in hostile_files.CASES.values():
    open("file-" + case.name, "wb").write(case.bytes())
END
imgtool create base.limg 1M
imgtool create -b base.limg file-over.limg
rm base.limg
mkfifo base.limg base.img base other.img base.vmdk base.vhdx base.vhd
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 # cannot work under strace
for file in file-*; do
	strace -f -o trace -e trace=%file,socket,connect,bind timeout 20 "${tool[@]}" inspect "$file" >/dev/null 2>&1 || [[ $? == [46] ]] ||
		fail "$file: exit $?"
	grep -E -e '"(/etc/(passwd|shadow)|/dev/|[^"]*base(\.[a-z]+)?"|[^"]*other\.img)' -e '^[0-9]+ +(socket|connect|bind)\(' trace &&
		fail "$file: something else was touched"
	(($(grep -c "\"$file\"" trace) > 0)) || fail "$file: the trace says nothing"
done
files=(file-*)
((${#files[@]} > 80)) && echo "nothing else is opened"
