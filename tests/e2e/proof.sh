# SPDX-License-Identifier: MIT
# shellcheck shell=dash disable=SC2086 # words: $linux is some
# What runs inside the machine with SVM (nested.py): a Linux guest on imgvm is snapshotted, destroyed and brought back,
# killed and brought back, started cold. Each step prints a line that begins with PROOF; nested.py wants them all.

# start CPUS ARGUMENT...: imgvm run in the background, its keyboard at descriptor 3, its serial port in the file serial
start()
{
	rm -f keys
	mkfifo keys
	: >serial
	mark=1
	imgvm run "$@" <keys >serial 2>errors &
	vm=$!
	exec 3>keys
}

threads()
{
	local task

	for task in "/proc/$vm/task/"*; do
		echo "thread $(cat "$task/comm"): $(cut -d' ' -f3,14,15 "$task/stat") in $(cat "$task/wchan")"
	done
}

# Of a machine that does not answer: its threads, its requests, and what the guest says of itself when its button is pressed.
look_closer()
{
	threads
	imgvm status --json root.limg
	imgvm powerdown root.limg
	sleep 20
	threads
}

fail()
{
	echo "FAILED: $*"
	kill -0 $vm 2>/dev/null && look_closer
	tail -n 150 serial | grep -v '^L2 COUNT'
	tail -n 3 serial
	cat errors
	exit 1
}

seconds()
{
	cut -d. -f1 /proc/uptime
}

new()
{
	tail -n +$mark serial | tr -d '\r'
}

# What has been printed until now is not looked at any more.
forget()
{
	mark=$(($(wc -l <serial) + 1))
}

await()
{
	local until=$(($(seconds) + 200))

	until new | grep -q "$1"; do
		[ "$(seconds)" -lt $until ] || fail "no '$1' within 200 s"
		kill -0 $vm 2>/dev/null || fail "imgvm has ended before '$1'"
		usleep 100000
	done
}

say()
{
	forget
	echo "$1" >&3
	await "$2"
}

# ended STATUS: imgvm ends by itself
ended()
{
	local got=0

	exec 3>&-
	wait $vm || got=$?
	[ $got = "$1" ] || fail "imgvm ended with $got, not $1"
}

try()
{
	"$@" || fail "$* ended with $?"
}

count()
{
	new | sed -n 's/^L2 COUNT \([0-9]*\)$/\1/p' | $1 -n 1
}

# The first number that the guest's process counts now follows that of the snapshot.
goes_on()
{
	local first

	await '^L2 COUNT'
	first=$(count head)
	{ [ "$first" -ge "$at" ] && [ "$first" -le $((at + 10)) ]; } || fail "it counted to $at, and goes on with $first"
}

new_files='for i in $(seq 200); do echo $i >/data/new$i; done; cat /data/new* | sha256sum >/sum'
new_files="$new_files; echo secret >/run/memory"
sum='cat /data/new* | sha256sum | cmp - /sum && echo L2 SUM $(cat /run/memory)'
# Read-only first: a kernel whose journal is overwritten under it may stop for good, with a lock of it held.
destroy='rm -rf /data /manifest /sum && mount -o remount,ro / && dd if=/dev/zero of=/dev/vda bs=1M count=40 conv=fsync'
destroy="$destroy && echo 1 >/proc/sys/vm/drop_caches"
now='$(cut -d" " -f1 /proc/uptime)'
throughput="echo 3 >/proc/sys/vm/drop_caches; a=$now; dd if=/dev/vda of=/dev/null bs=1M count=32 2>/dev/null; b=$now"
writer='(i=0; while :; do i=$((i + 1)); echo $i >/next; sync; mv /next /synced; sync; echo L2 SYNCED $i; done) &'

linux="--kernel vmlinuz --initrd l2.gz --append"
# QEMU's SVM does not tell KVM of XSETBV, which so believes that XSAVE keeps no SSE registers: do without it.
line="console=ttyS0 quiet panic=0 noxsave"

step()
{
	echo "PROOF $* ($(cut -d' ' -f1 /proc/uptime) s)"
}

start --bios bios.bin --memory 16M --no-reboot boot.limg
await '^T00000002'
echo x >&3
ended 10
step a triple fault is a reset

start --memory 160M --cpus 2 $linux "$line" root.limg
await '^L2 START 1 CPUS 2'
await '^L2 FILES 300 boot'
step booted with two processors
say "$new_files; sync; echo L2 READY" '^L2 READY'
imgtool snapshot create root.limg@good || fail "imgtool snapshot create of a live image: $?"
at=$(count tail)
imgtool snapshot list root.limg
step snapshotted by imgtool at count $at
say "$destroy && echo L2 DESTROYED" '^L2 DESTROYED'
usleep 300000
step destroyed
try imgvm revert root.limg@good
forget
goes_on
say 'verify reverted' '^L2 FILES 300 reverted'
say "$sum" '^L2 SUM secret'
step reverted, files and processes go on
try imgvm snapshot root.limg@later
imgtool snapshot list --json root.limg
kill -9 $vm
wait $vm
exec 3>&-
try imgtool check -q root.limg
try imgtool revert -q root.limg@good
start root.limg@good
goes_on
say 'verify resumed' '^L2 FILES 300 resumed'
say "$sum" '^L2 SUM secret'
step killed and resumed in another process
say 'echo more >/data/more; sync; echo L2 MORE $(nproc)' '^L2 MORE 2'
try imgvm powerdown root.limg
await '^L2 OFF'
ended 0
step powered off by its button

try imgtool revert -q root.limg@good
start --memory 160M --cpus 1 $linux "$line" root.limg
await '^L2 START 2 CPUS 1'
await '^L2 FILES 300 boot'
step cold start of the reverted image
say "$throughput; echo L2 READ 32 MiB in \$a to \$b" '^L2 READ'
new | grep '^L2 READ'
for round in 1 2; do
	say "$writer" '^L2 SYNCED 7'
	usleep 370000
	kill -9 $vm
	wait $vm
	exec 3>&-
	synced=$(new | sed -n 's/^L2 SYNCED \([0-9]*\)$/\1/p' | tail -n 1)
	try imgtool check -q root.limg
	start --memory 160M $linux "$line" root.limg
	await "^L2 START $((round + 2))"
	await '^L2 FILES 300 boot'
	say 'echo L2 VALUE $(cat /synced)' '^L2 VALUE'
	value=$(new | sed -n 's/^L2 VALUE \([0-9]*\)$/\1/p')
	[ "$value" -ge "$synced" ] || fail "the guest had synced $synced, and after a kill there is $value"
	step killed when $synced was synced, and $value is there
done
say 'off' '^L2 OFF'
ended 0
try imgtool check -q root.limg
step powered off
exit 0
