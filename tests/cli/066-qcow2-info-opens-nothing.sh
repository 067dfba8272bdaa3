# SPDX-License-Identifier: MIT
# info of an image from a stranger: what its header names is not opened. qemu-img opened the data file that it names
# until CVE-2024-4467 was mended; which kind is installed is not ours to judge, and it may hang.
need qemu-img strace
truncate -s 1M base.raw
qemu-img create -q -f qcow2 -b base.raw -F raw over.qcow2
qemu-img create -q -f qcow2 -o data_file=data.raw ext.qcow2 1M
rm base.raw data.raw
mkfifo base.raw data.raw # who opens one waits for ever, or is seen
timeout 10 "${tool[@]}" info --json over.qcow2 | json '[d["backing"]["name"], d["backing"]["format"], d["virtual_size"]]'
timeout 10 "${tool[@]}" info --json ext.qcow2 | json '[d["format"], d["virtual_size"]]'
opened()
{
	strace -f -e trace=open,openat,openat2 -o trace timeout "${limit:-20}" "$@" >out 2>err || true
	grep -c -e 'base\.raw' -e 'data\.raw' trace || true
}
echo "ours: $(opened "${tool[@]}" info over.qcow2) and $(opened "${tool[@]}" info ext.qcow2)"
(($(limit=3; opened qemu-img info --backing-chain over.qcow2) > 0)) && echo "qemu-img --backing-chain: opens the backing file, wherever it is"

# A file that the header must not make anybody read: reading through it is another thing, and has a policy.
qemu-img create -q -u -f qcow2 -b /etc/hostname -F raw evil.qcow2 1M
echo "ours: $(opened "${tool[@]}" info evil.qcow2)"
run imgtool read evil.qcow2 --length 1
run imgtool convert evil.qcow2 copy.qcow2
run imgtool info --chain evil.qcow2
