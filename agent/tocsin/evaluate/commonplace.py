"""What the command lines of an ordinary host look like: the ground on which a literal is rare or common.

Each entry is an event of no interest: executable, command line, parent's
executable, parent's command line. Nothing but the choice of literals depends on it.
"""

from typing import Final

_SHELLS: Final = (
    (b"/usr/bin/bash", b"bash -c make -j4 all"),
    (b"/usr/bin/dash", b"/bin/sh -c /usr/lib/sysstat/debian-sa1 1 1"),
    (b"/usr/bin/dash", b"sh -c dpkg-query -W -f='${Version}' libc6 2>/dev/null"),
    (b"/usr/bin/bash", b"-bash"),
    (b"/usr/bin/bash", b"/bin/bash /usr/local/bin/backup.sh --target /var/backups --verbose"),
    (b"/usr/lib/systemd/systemd", b"/sbin/init"),
    (b"/usr/sbin/cron", b"/usr/sbin/cron -f -P"),
    (
        b"/usr/bin/containerd-shim-runc-v2",
        b"/usr/bin/containerd-shim-runc-v2 -namespace moby -id 4f1c -address /run/c.sock",
    ),
    (b"/usr/sbin/sshd", b"sshd: admin [priv]"),
    (b"/usr/bin/make", b"make -C /home/user/src/build all"),
)
_COMMANDS: Final = (
    (b"/usr/bin/ls", b"ls --color=auto -la /home/user"),
    (b"/usr/bin/cat", b"cat /etc/hostname"),
    (b"/usr/bin/cat", b"cat /proc/meminfo /proc/loadavg"),
    (b"/usr/bin/grep", b"grep -rn --include=*.py import /home/user/src"),
    (b"/usr/bin/grep", b"grep -q ^root: /etc/passwd"),
    (b"/usr/bin/sed", b"sed -n s/.*=//p /tmp/config.txt"),
    (b"/usr/bin/awk", b"awk {print $1} /var/log/syslog"),
    (b"/usr/bin/find", b"find /var/log -name *.log -mtime +7 -type f"),
    (b"/usr/bin/git", b"git -c core.fsmonitor=false status --porcelain"),
    (b"/usr/bin/git", b"git fetch origin --prune"),
    (b"/usr/lib/git-core/git", b"/usr/lib/git-core/git rev-list --objects --stdin --not --all --quiet"),
    (b"/usr/bin/python3.11", b"python3 -m http.server 8000"),
    (b"/usr/bin/python3.11", b"/usr/bin/python3 -u /opt/app/worker.py --config /etc/app/config.yml"),
    (b"/usr/bin/python3.11", b"python3 -c import sys; print(sys.version)"),
    (b"/usr/bin/perl", b"/usr/bin/perl -w /usr/bin/deb-systemd-helper status"),
    (b"/usr/bin/curl", b"curl -fsSL -o /dev/null https://example.com/health"),
    (b"/usr/bin/wget", b"wget -q -O - http://127.0.0.1:8080/metrics"),
    (b"/usr/bin/systemctl", b"systemctl is-active --quiet nginx.service"),
    (b"/usr/bin/systemctl", b"/bin/systemctl restart app"),
    (b"/usr/bin/journalctl", b"journalctl -u ssh --since today --no-pager"),
    (b"/usr/bin/docker", b"docker exec -it web ls /app"),
    (b"/usr/bin/docker", b"docker ps --format {{.Names}}"),
    (b"/usr/sbin/runc", b"runc --root /var/run/docker/runtime-runc/moby --log /run/log.json state 4f1c"),
    (b"/usr/bin/node", b"node /srv/app/node_modules/.bin/webpack --mode production"),
    (b"/usr/lib/jvm/java-17/bin/java", b"java -Xmx512m -jar /opt/service/service.jar --server.port=8080"),
    (b"/usr/bin/gcc", b"gcc -O2 -Wall -Wextra -I/usr/include -c src/main.c -o build/main.o"),
    (
        b"/usr/lib/gcc/x86_64-linux-gnu/12/cc1",
        b"/usr/lib/gcc/x86_64-linux-gnu/12/cc1 -quiet -O2 main.c -o /tmp/ccXa1b2c.s",
    ),
    (
        b"/usr/bin/x86_64-linux-gnu-ld.bfd",
        b"/usr/bin/ld -plugin /usr/libexec/liblto_plugin.so -o a.out /usr/lib/crt1.o",
    ),
    (b"/usr/bin/tar", b"tar -czf /var/backups/home.tar.gz --exclude=.cache /home"),
    (b"/usr/bin/gzip", b"gzip -9 /var/log/app.log.1"),
    (b"/usr/bin/cp", b"cp -a /etc/nginx/nginx.conf /tmp/nginx.conf.bak"),
    (b"/usr/bin/mv", b"mv /tmp/out.tmp /var/lib/app/out"),
    (b"/usr/bin/rm", b"rm -f /tmp/tmp.x1y2z3"),
    (b"/usr/bin/rm", b"rm -rf /home/user/src/build"),
    (b"/usr/bin/mkdir", b"mkdir -p /var/lib/app/cache"),
    (b"/usr/bin/chmod", b"chmod 0644 /etc/app/config.yml"),
    (b"/usr/bin/chown", b"chown -R app:app /var/lib/app"),
    (b"/usr/bin/id", b"id -u"),
    (b"/usr/bin/whoami", b"whoami"),
    (b"/usr/bin/uname", b"uname -a"),
    (b"/usr/bin/ps", b"ps aux --sort=-%cpu"),
    (b"/usr/bin/dpkg", b"dpkg --status-fd 21 --configure --pending"),
    (b"/usr/bin/apt-get", b"apt-get -qq -y update"),
    (b"/usr/bin/dash", b"/bin/sh -e /var/lib/dpkg/info/man-db.postinst triggered /usr/share/man"),
    (b"/usr/bin/sudo", b"sudo -n systemctl status ssh"),
    (b"/usr/bin/ssh", b"ssh -o BatchMode=yes deploy@web1.internal uptime"),
    (b"/usr/bin/rsync", b"rsync -az --delete /srv/data/ backup@10.0.0.5:/srv/data/"),
    (b"/usr/bin/crontab", b"crontab -l"),
    (b"/usr/bin/date", b"date +%Y-%m-%dT%H:%M:%S"),
    (b"/usr/bin/sleep", b"sleep 60"),
    (b"/usr/bin/tail", b"tail -n 100 -f /var/log/nginx/access.log"),
    (b"/usr/bin/head", b"head -c 16 /dev/urandom"),
    (b"/usr/bin/ip", b"ip -o addr show scope global"),
    (b"/usr/bin/ping", b"ping -c 1 -W 1 10.0.0.1"),
    (b"/usr/bin/vim.basic", b"vim /etc/hosts"),
    (b"/usr/bin/less", b"less README.md"),
    (b"/usr/bin/psql", b"psql -h db.internal -U app -c select 1"),
    (b"/usr/bin/env", b"env bash -euo pipefail ./run.sh"),
    (b"/usr/bin/base64", b"base64 -w0"),
    (b"/usr/sbin/logrotate", b"/usr/sbin/logrotate /etc/logrotate.conf"),
)

COMMONPLACE: Final = tuple((*child, *_SHELLS[i % len(_SHELLS)]) for i, child in enumerate((*_COMMANDS, *_SHELLS)))
"""Events; each has four values."""
