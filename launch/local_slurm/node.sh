#!/usr/bin/env bash
# First process of one pretended node, inside namespaces of its own: gives it a host name, /etc/hosts, /etc/slurm, /tmp
# and /dev/shm, then runs slurmd. Started by `aitrain local-slurm start`.
#   NODE    name of the node
#   SITE    folder of the cluster
#   SHARED  folders below /tmp that all nodes share, with colons between
set -eu
hostname "$NODE"
own=$SITE/spool/$NODE
mkdir -p "$own/tmp"
echo "$NODE" >"$own/hostname"
mount --bind "$SITE/etc/hosts" /etc/hosts
if [ -e /etc/hostname ]; then mount --bind "$own/hostname" /etc/hostname; fi
# a job that starts with a clean environment finds the configuration here
mkdir -p /etc/slurm
mount --bind "$SITE/etc" /etc/slurm
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs "$own/tmp"
IFS=:
for folder in $SHARED; do
  mkdir -p "$own/tmp/${folder#/tmp/}"
  mount --rbind "$folder" "$own/tmp/${folder#/tmp/}"
done
unset IFS
mount --rbind "$own/tmp" /tmp
export SLURM_CONF=/etc/slurm/slurm.conf
# bash stays the first process: it reaps what is orphaned
slurmd -D -N "$NODE" -f "$SLURM_CONF" &
wait $!
