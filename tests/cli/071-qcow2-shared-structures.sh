# Two structures in one cluster: to write one would destroy the other. Nothing is written until a repair has set it right, if it can.
for name in reftable-to-l1 reftable-to-itself reftable-block-twice l1-to-refcount-table l1-to-refcount-block snapshot-shared-l1; do
	/usr/bin/python3 - $name <<-'EOF'
	import os, sys
	sys.path.insert(0, os.environ["SRCDIR"] + "/tests/images/gen")
	import qcow2_hostile
	open(sys.argv[1], "wb").write(qcow2_hostile.CASES[sys.argv[1]].bytes())
	EOF
	before=$(sha256sum <$name)
	printf x | imgtool write $name 2>&1 || echo "exit $?"
	expect 4 imgtool snapshot create -q $name@new
	expect 4 imgtool resize -q $name 64M
	[[ $(sha256sum <$name) = "$before" ]] || fail "$name was changed"
	status=0
	imgtool check -q --repair $name >log 2>&1 || status=$?
	echo "repair: $status"
	((status == 4)) || printf x | imgtool write $name
done
