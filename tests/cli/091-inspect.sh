# SPDX-License-Identifier: MIT
# inspect: verdicts, offsets, JSON, policies; and that nothing but the file is opened.
files() # NAME...: cases of tests/images/gen/hostile_files.py
{
	/usr/bin/python3 - "$SRCDIR" "$@" <<-'END'
	import sys
	sys.path.insert(0, sys.argv[1] + "/tests/images/gen")
	import hostile_files
	for name in sys.argv[2:]:
	    open(name, "wb").write(hostile_files.CASES[name].bytes())
	END
}
files qcow2-honest qcow2-backing qcow2-backing-json qcow2-bomb qcow2-nested qcow2-vhd qcow2-escape-name qcow2-cut raw-gpt \
	vmdk-parent-comment vhd-parent gpt-copies-differ

run imgtool inspect qcow2-honest
run imgtool inspect qcow2-backing
run imgtool inspect qcow2-backing-json
run imgtool inspect qcow2-bomb
run imgtool inspect qcow2-nested
run imgtool inspect qcow2-vhd
run imgtool inspect qcow2-escape-name
run imgtool inspect qcow2-cut
run imgtool inspect raw-gpt
run imgtool inspect vmdk-parent-comment
run imgtool inspect vhd-parent
run imgtool inspect gpt-copies-differ
run imgtool inspect --json qcow2-backing
run imgtool inspect -q qcow2-backing
expect 0 imgtool inspect -q qcow2-honest

# limg: honest, with snapshots, standing on another, with something behind its end
imgtool create base.limg 1M
imgtool create -b base.limg over.limg
imgtool snapshot create base.limg@one
run imgtool inspect base.limg
run imgtool inspect over.limg
cp base.limg tail.limg
echo more >>tail.limg
run imgtool inspect tail.limg
truncate -s 100K tail.limg
run imgtool inspect tail.limg

# what it is said to be
run imgtool inspect -f raw qcow2-honest
run imgtool inspect -f qcow2 raw-gpt
run imgtool inspect -f nonsense raw-gpt

# policies
echo '{"formats": ["qcow2", "limg"], "allow": ["backing-file", "reference-outside"]}' >references.json
echo '{"deny": ["snapshots"], "limits": {"snapshots": 5, "virtual-size": "512K"}}' >strict.json
run imgtool inspect --policy references.json qcow2-backing
run imgtool inspect --policy references.json raw-gpt
run imgtool inspect --policy strict.json base.limg
run imgtool inspect --policy strict.json --limit virtual-size=1M base.limg
run imgtool inspect --limit expansion=200000 qcow2-bomb
for bad in '' '[]' '{"allow": "backing-file"}' '{"allow": ["backing_file"]}' '{"allow": ["bad-header"]}' '{"permit": []}' \
	'{"limits": {"depth": 0}}' '{"limits": {"size": 1}}' '{"formats": [1]}' '{"allow": [], "allow": []}'; do
	echo "$bad" >bad.json
	run imgtool inspect --policy bad.json qcow2-honest
done
run imgtool inspect --policy none.json qcow2-honest

expect 0 imgtool inspect --rules
grep -c . out >lines
(($(cat lines) > 50)) || fail "only $(cat lines) rules"
run imgtool inspect
run imgtool inspect --rules qcow2-honest
run imgtool inspect none.qcow2
mkdir folder
run imgtool inspect folder
mkfifo fifo
run timeout 10 "${tool[@]}" inspect fifo 2>&1 | sed 's/^\$.*inspect/$ inspect/'

# somebody writes it
printf x | imgtool write -q base.limg --offset 0
expect 0 imgtool inspect -q -U base.limg
