# SPDX-License-Identifier: MIT
# A program that is started without stdin, stdout or stderr must not get an image under their numbers: what it prints would go into it.
# 501 leaks are more than stdio holds back.
imgtool create -f qcow2 -o cluster_size=4K a.qcow2 2M
random_bytes 95 2000000 | imgtool write a.qcow2
/usr/bin/python3 - a.qcow2 <<'END'
import struct, sys
with open(sys.argv[1], "r+b") as f:
    def entry(at):
        f.seek(at)
        return struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
    table = entry(entry(40))  # the first of the L1 table, whose place is at 40 of the header
    for i in range(0, 512, 2):
        f.seek(table + 8 * i)
        f.write(bytes(8))
END
closed()
{
	local status=0
	bash -c "$1" - "${tool[@]}" "${@:2}" 2>err || status=$?
	echo "exit $status$(sed 's/^/: /' err)"
}
for mode in off auto; do
	cp a.qcow2 b.qcow2
	closed '"$@" >&-' check --repair --sandbox=$mode b.qcow2
	imgtool check -q b.qcow2
	cp a.qcow2 b.qcow2
	closed '"$@" <&- >&- 2>&-' check --repair --sandbox=$mode b.qcow2
	imgtool check -q b.qcow2
	closed '"$@" >/dev/null 2>&-' info --sandbox=$mode b.qcow2
	closed '"$@" <&-' write --sandbox=$mode b.qcow2
	closed '"$@" 2>&-' info --sandbox=$mode nowhere
	imgtool check -q b.qcow2
done
