# A check beside a writer cannot tell damage from what is just being written: it says so, and not that data is lost.
mkfifo pipe
writes()
{
	imgtool lock "$1" | grep -q writes
}
imgtool create -q w.limg 8M
random_bytes 1 4000000 | imgtool write -q w.limg
cp w.limg bad.limg
# in a block of data
printf 'xxxx' | dd of=bad.limg bs=1 seek=3000000 conv=notrunc status=none
expect 4 imgtool check -U bad.limg
grep -q '^damage: bad.limg' out
grep -q 'restore it from a backup' out

for image in w.limg bad.limg; do
	"${tool[@]}" write $image --offset 5M <pipe &
	exec 3>pipe
	wait_for 20 writes $image
	run imgtool check $image 2>&1 | sed 's/pid [0-9]*/pid PID/'
	run imgtool check -U $image | sed 's/; .* verified/; all verified/'
	(imgtool check -U --json $image 2>/dev/null || echo "exit $?" >&2) | json 'd["clean"], d["conclusive"], len(d["findings"]) > 0'
	exec 3>&-
	wait $!
done
expect 4 imgtool check -U --json bad.limg
json 'd["clean"], d["conclusive"]' <out
