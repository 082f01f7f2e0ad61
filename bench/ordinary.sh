#!/bin/sh
# Ordinary acts, over and over: what the producer's records are captured from.
# $1: the compiled workloads. The last act of a round is the one that the self-test rule detects.
while :; do
	ls -l /etc
	cat /etc/passwd
	id -u
	uname -a
	grep -c root /etc/passwd
	find /etc -maxdepth 1 -name 'h*'
	sort /etc/group | head -n 3
	tar -cf - /etc/hostname | wc -c
	date
	sed -n 1p /etc/hosts
	"$1" connect 10 0
	/bin/true tocsin-self-test-act
done >/dev/null 2>&1
