# --force replaces what nobody uses, by a file of the same owner and with the same rights.
random_bytes 1 1000000 >content
mkfifo pipe
writes()
{
	imgtool lock "$1" | grep -q writes
}
pids()
{
	sed 's/pid [0-9]*/pid PID/'
}

# Somebody writes it: his writes would go into a file that has no name any more.
for file in a.limg a.qcow2 a.vmdk a.vdi a.raw; do
	imgtool create -q $file 8M
	"${tool[@]}" write -f ${file#*.} --offset 1M $file <pipe &
	exec 3>pipe
	wait_for 20 writes $file
	(
		run imgtool create --force $file 4M
		run imgtool convert --force content $file
		run imgtool convert --force --sandbox off content $file
	) 2>&1 | pids
	cat content >&3
	exec 3>&-
	wait $!
	imgtool read -f ${file#*.} --offset 1M --length 1000000 $file | cmp - content
	imgtool create -q --force $file 4M
done

# An overlay on it is written; it is what is read itself.
imgtool create -q parent.limg 8M
imgtool create -q -b parent.limg over.qcow2
"${tool[@]}" write over.qcow2 <pipe &
exec 3>pipe
wait_for 20 writes over.qcow2
(run imgtool create --force parent.limg 8M) 2>&1 | pids
exec 3>&-
wait $!
imgtool create -q --force parent.limg 8M
run imgtool convert --force parent.limg parent.limg
run imgtool convert --force a.limg a.limg
imgtool create -q -b a.limg above.limg
run imgtool convert --force above.limg a.limg
run imgtool check -q above.limg

if command -v qemu-io >/dev/null; then
	imgtool create -q q.qcow2 8M
	qemu-io -f qcow2 q.qcow2 <pipe >/dev/null &
	exec 3>pipe
	wait_for 20 writes q.qcow2
	expect 5 imgtool create --force q.qcow2 8M
	grep -q "pid $! (qemu-io)" err
	echo "write -P 7 0 64k" >&3
	exec 3>&-
	wait $!
	imgtool read --length 64K q.qcow2 | cmp - <(head -c 65536 /dev/zero | tr '\0' '\7')
fi

# Where it cannot even be read nobody can be asked.
imgtool create -q unreadable.limg 1M
chmod 0 unreadable.limg
imgtool create -q --force unreadable.limg 2M

# Rights and, as root, owner and group stay, also by way of the broker.
umask 077
imgtool create -q r.limg 1M
chmod 664 r.limg
if ((UID == 0)); then chown 65534:65533 r.limg; fi
before=$(stat -c '%a %u %g' r.limg)
imgtool convert -q --force content r.limg
same rights "$(stat -c '%a %u %g' r.limg)" "$before"
imgtool create -q --force r.limg 1M
same rights "$(stat -c '%a %u %g' r.limg)" "$before"
