# SPDX-License-Identifier: MIT
# qcow2 images in use by QEMU's tools, and the other way round: who writes keeps others from writing and from reading; the holder
# is named. With -U one may look, and is told that the answer may be stale.
need qemu-img qemu-io qemu-nbd nbdinfo
imgtool create base.qcow2 4M
imgtool create -b base.qcow2 -F qcow2 a.qcow2
imgtool snapshot create a.qcow2@s
imgtool bitmap add a.qcow2 b
held() { imgtool lock --json a.qcow2 | grep -q "\"pid\": $1"; }
written() { imgtool lock --json a.qcow2 | grep -q '"writes": true'; }

# refused PID COMMAND...: in use, and the holder is named.
refused()
{
	local pid=$1
	shift
	expect 5 "$@"
	grep -q "$pid" err || fail "the holder is not named: $(cat err)"
	echo "refused: ${*:2:2}"
}

verbs_refused()
{
	refused "$1" imgtool write a.qcow2 </dev/null
	refused "$1" imgtool snapshot create a.qcow2@t
	refused "$1" imgtool snapshot delete a.qcow2@s
	refused "$1" imgtool revert a.qcow2@s
	refused "$1" imgtool resize a.qcow2 +1M
	refused "$1" imgtool check --repair a.qcow2
	refused "$1" imgtool bitmap add a.qcow2 c
	refused "$1" imgtool amend -o lazy_refcounts=on a.qcow2
	refused "$1" imgtool commit a.qcow2
	refused "$1" imgtool rebase -b base.qcow2 -F qcow2 a.qcow2
}

readers_refused()
{
	refused "$1" imgtool read a.qcow2 --length 1
	refused "$1" imgtool info a.qcow2
	refused "$1" imgtool check a.qcow2
	refused "$1" imgtool map a.qcow2
	refused "$1" imgtool convert a.qcow2 b.raw
	refused "$1" imgtool snapshot list a.qcow2
}

# look: with -U; a line on stderr, and a member of the JSON object.
look()
{
	local verb
	for verb in info check map; do
		expect 0 imgtool "$verb" -U a.qcow2
		grep -c 'may be stale' err
		expect 0 imgtool "$verb" -q -U --json a.qcow2
		[[ ! -s err ]] || fail "$verb -q: $(cat err)"
		json 'd["may_be_stale"]' <out
	done
	imgtool info --json base.qcow2 >/dev/null || fail 'the base may be looked at'
}

echo 'qemu-io writes'
mkfifo commands
qemu-io a.qcow2 <commands >/dev/null 2>&1 &
writer=$!
exec 3>commands
wait_for 10 written
verbs_refused $writer
readers_refused $writer
look
run imgtool read -q -U a.qcow2 --length 0
# what stands below is held as well: nobody writes it
refused $writer imgtool write base.qcow2 </dev/null
run imgtool read base.qcow2 --length 0
exec 3>&-
wait $writer

echo 'qemu-io reads'
qemu-io -r a.qcow2 <commands >/dev/null 2>&1 &
reader=$!
exec 3>commands
wait_for 10 held $reader
verbs_refused $reader
run imgtool read a.qcow2 --length 0
imgtool info -q --json a.qcow2 | json 'd["may_be_stale"]'
run imgtool check -q a.qcow2
exec 3>&-
wait $reader

echo 'qemu-nbd serves it for writing'
qemu-nbd -f qcow2 -k "$PWD/socket" -t a.qcow2 &
server=$!
wait_for 10 written
refused $server imgtool write a.qcow2 </dev/null
refused $server imgtool bitmap remove a.qcow2 b
refused $server imgtool info a.qcow2
look
kill $server
wait $server || true

echo 'imgtool writes'
"${tool[@]}" write a.qcow2 <commands &
writer=$!
exec 3>commands
wait_for 10 written
theirs()
{
	expect 1 "$@"
	grep -o 'Failed to get .* lock' err | sort -u
}
theirs qemu-io -c 'write 0 512' a.qcow2
theirs qemu-io -r -c 'read 0 512' a.qcow2
theirs qemu-img snapshot -c x a.qcow2
theirs qemu-img info a.qcow2
theirs qemu-img check a.qcow2
theirs qemu-img convert -O raw a.qcow2 b.raw
theirs qemu-io -c 'write 0 512' base.qcow2
theirs qemu-nbd -f qcow2 -k "$PWD/other" -t a.qcow2
theirs qemu-img bitmap --add a.qcow2 theirs
qemu-img info -U a.qcow2 | grep -c 'virtual size'
qemu-img info base.qcow2 | grep -c 'virtual size'
verbs_refused $writer
readers_refused $writer
exec 3>&-
wait $writer

echo 'imgtool reads'
mkfifo slow
"${tool[@]}" read a.qcow2 >slow &
reader=$!
exec 4<slow
wait_for 10 held $reader
theirs qemu-io -c 'write 0 512' a.qcow2
theirs qemu-img snapshot -c x a.qcow2
theirs qemu-io -c 'write 0 512' base.qcow2
qemu-img info a.qcow2 | grep -c 'virtual size'
qemu-io -r -c 'read 0 512' a.qcow2 | grep -c 'read 512'
cat <&4 >/dev/null
exec 4<&-
wait $reader

run qemu-img check -q a.qcow2
run imgtool check -q a.qcow2
run imgtool lock a.qcow2
