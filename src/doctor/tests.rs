//! Made-up hosts: a good one, and the good one with a single fault each.

use super::*;
use crate::config::{Access, PrivateFds};
use std::fs;
use tempfile::TempDir;

const CONNECTIONS: u64 = 1_000_000;

/// A host that is good for a million connections, in files.
const GOOD: [(&str, &str); 27] = [
    (
        "proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max open files            1024                 1100000              files     \n\
         Max locked memory         65536                65536                bytes     \n",
    ),
    ("proc/self/status", "Name:\tskein\nCpus_allowed_list:\t0-2,7\n"),
    ("proc/self/cgroup", "4:memory:/unit\n0::/\n"),
    (
        "proc/self/mountinfo",
        "27 1 254:0 / / rw - ext4 /dev/vda rw\n30 27 0:44 / /mnt/far rw - nfs4 far:/ rw\n",
    ),
    (
        "proc/meminfo",
        "MemAvailable:   20000000 kB\nSwapTotal: 0 kB\nCommitLimit: 20000000 kB\nCommitted_AS: 1000000 kB\n",
    ),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
    ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000"),
    ("proc/sys/kernel/osrelease", "6.18.44-made-up\n"),
    ("proc/sys/kernel/io_uring_disabled", "0\n"),
    ("proc/sys/fs/file-nr", "1234\t0\t2466174\n"),
    ("proc/sys/fs/file-max", "2466174\n"),
    ("proc/sys/fs/nr_open", "1048576\n"),
    ("proc/sys/net/core/somaxconn", "4096\n"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "4096\n"),
    ("proc/sys/net/ipv4/tcp_mem", "287898\t383866\t575796\n"),
    ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t33554432\n"),
    ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ("proc/sys/net/ipv4/ip_local_reserved_ports", "\n"),
    ("proc/sys/vm/overcommit_memory", "0\n"),
    ("proc/sys/vm/max_map_count", "65530\n"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    (
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
        "tsc\n",
    ),
    (
        "sys/devices/system/clocksource/clocksource0/available_clocksource",
        "tsc hpet\n",
    ),
    ("sys/class/net/lo/queues/rx-0/rps_cpus", "0\n"),
    ("sys/class/net/eth0/device", ""),
    ("sys/class/net/eth0/queues/rx-0/rps_cpus", "0000000f\n"),
];

struct MadeUp {
    directory: TempDir,
    tried: Tried,
}

impl MadeUp {
    fn good() -> MadeUp {
        let host = MadeUp {
            directory: tempfile::tempdir().unwrap(),
            tried: Tried {
                io_uring: Ok(()),
                data_dir: PathBuf::from("/var/lib/skein"),
                data_bytes_free: Some(10 << 30),
            },
        };
        GOOD.iter().for_each(|(path, text)| host.write(path, text));
        host
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn examine(&self, needs: &Needs) -> Examination {
        examine(&Host::made_up(self.directory.path(), self.tried.clone()), needs)
    }
}

fn config() -> Config {
    Config {
        cores: 4,
        ..Config::default()
    }
}

fn needs() -> Needs {
    Needs::new(config(), CONNECTIONS)
}

/// What is not as on the good host, which is one thing.
fn only_finding(host: &MadeUp, needs: &Needs) -> Finding {
    let good = MadeUp::good().examine(needs).findings;
    let found = host.examine(needs).findings;
    let mut others = found.into_iter().filter(|finding| !good.contains(finding));
    let finding = others.next().expect("the fault is found");
    assert_eq!(others.next(), None, "beside {finding:?}");
    finding
}

#[test]
fn a_good_host_has_nothing_to_change() {
    let examination = MadeUp::good().examine(&needs());
    for finding in &examination.findings {
        assert!(
            finding.state == State::Ok && finding.commands.is_empty() && !finding.text.is_empty(),
            "{finding:?}"
        );
    }
    assert_eq!(examination.fixes_count, 0);
    let text = examination.to_string();
    assert!(
        text.starts_with("1,000,000 connections on 4 cores, data in skein-data\nok    open files "),
        "{text}"
    );
    assert!(text.ends_with("\nnothing has to be changed\n"), "{text}");
}

#[test]
fn each_fault_is_one_thing_to_change_with_the_command_that_mends_it() {
    for (path, text, check, command) in [
        (
            "proc/sys/fs/file-max",
            "1000000",
            "fs.file-max",
            "sudo sysctl -w fs.file-max=1011298",
        ),
        (
            "proc/meminfo",
            "MemAvailable: 4000000 kB\n",
            "memory",
            "skein --max-connections 876608",
        ),
        (
            "sys/fs/cgroup/memory/unit/memory.limit_in_bytes",
            "2147483648",
            "memory",
            "skein --max-connections 452648",
        ),
        (
            "sys/fs/cgroup/memory.max",
            "1073741824",
            "memory",
            "skein --max-connections 219023",
        ),
        (
            "proc/sys/net/core/somaxconn",
            "128",
            "net.core.somaxconn",
            "sudo sysctl -w net.core.somaxconn=4096",
        ),
        (
            "proc/sys/net/ipv4/tcp_max_syn_backlog",
            "512",
            "net.ipv4.tcp_max_syn_backlog",
            "sudo sysctl -w net.ipv4.tcp_max_syn_backlog=4096",
        ),
        (
            "proc/sys/net/ipv4/tcp_mem",
            "20000 30000 40000",
            "net.ipv4.tcp_mem",
            "sudo sysctl -w net.ipv4.tcp_mem=\"250000 375000 500000\"",
        ),
        (
            "proc/sys/net/ipv4/ip_local_port_range",
            "8081 60999",
            "net.ipv4.ip_local_port_range",
            "sudo sysctl -w net.ipv4.ip_local_reserved_ports=8883,8083,8084",
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_max",
            "262144",
            "net.netfilter.nf_conntrack_max",
            "sudo sysctl -w net.netfilter.nf_conntrack_max=1010000",
        ),
        (
            "proc/sys/vm/max_map_count",
            "1000",
            "vm.max_map_count",
            "sudo sysctl -w vm.max_map_count=1088",
        ),
        (
            "proc/self/mountinfo",
            "27 1 0:9 / / rw - ext4 /dev/vda rw\n28 27 0:9 / /var/lib rw shared:3 - nfs4 far:/ rw\n",
            "file system of the data",
            "skein --data-dir /var/lib/skein",
        ),
    ] {
        let host = MadeUp::good();
        host.write(path, text);
        // A group that is made up has a use as well as a limit.
        host.write("sys/fs/cgroup/memory/unit/memory.usage_in_bytes", "0");
        host.write("sys/fs/cgroup/memory.current", "0");
        let finding = only_finding(&host, &needs());
        assert_eq!((finding.check, finding.state), (check, State::Fix), "{finding:?}");
        assert_eq!(finding.commands, [command], "{finding:?}");
        let examination = host.examine(&needs());
        assert_eq!(examination.fixes_count, 1);
        let text = examination.to_string();
        assert!(text.contains(&format!("\n          {command}\n")), "{text}");
        assert!(text.contains("\n1 thing has to be changed\n"), "{text}");
    }
}

#[test]
fn what_only_costs_speed_is_a_hint_and_no_fault() {
    for (path, text, check, command) in [
        (
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "hpet\n",
            "clock source",
            "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource",
        ),
        (
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
            "powersave\n",
            "CPU frequency",
            "sudo cpupower frequency-set -g performance",
        ),
        (
            "sys/class/net/eth0/queues/rx-0/rps_cpus",
            "0\n",
            "receive queues",
            "sudo ethtool -L eth0 combined 4",
        ),
        (
            "proc/self/status",
            "Cpus_allowed_list:\t0-5\n",
            "--cores",
            "skein --cores 6",
        ),
        (
            "proc/sys/net/ipv4/tcp_rmem",
            "65536 131072 6291456",
            "net.ipv4.tcp_rmem",
            "sudo sysctl -w net.ipv4.tcp_rmem=\"4096 131072 6291456\"",
        ),
        (
            "proc/meminfo",
            "MemAvailable: 7000000 kB\n",
            "memory",
            "skein --max-connections 877086",
        ),
        (
            "proc/self/mountinfo",
            "27 1 0:9 / / rw - ext4 /dev/vda rw\n28 27 0:9 / /var rw - tmpfs tmpfs rw\n",
            "file system of the data",
            "skein --data-dir /var/lib/skein",
        ),
    ] {
        let host = MadeUp::good();
        host.write(path, text);
        let finding = only_finding_of(&host, check);
        assert_eq!(finding.state, State::Hint, "{finding:?}");
        assert_eq!(finding.commands[0], command, "{finding:?}");
        assert_eq!(host.examine(&needs()).fixes_count, 0);
    }
}

fn only_finding_of(host: &MadeUp, check: &str) -> Finding {
    let findings = host.examine(&needs()).findings;
    findings.into_iter().find(|finding| finding.check == check).unwrap()
}

#[test]
fn open_files_are_counted_per_table_and_mended_by_a_higher_limit_or_more_tables() {
    let host = MadeUp::good();
    host.write(
        "proc/self/limits",
        "Max open files            1024                 20000                files     \n\
         Max locked memory         65536                65536                bytes     \n",
    );
    let of = |cores, private_fds, connections| {
        let config = Config {
            cores,
            private_fds,
            ..config()
        };
        let findings = host.examine(&Needs::new(config, connections)).findings;
        findings
            .into_iter()
            .find(|finding| finding.check == "open files")
            .unwrap()
    };
    let finding = of(4, PrivateFds::Auto, CONNECTIONS);
    assert_eq!(finding.state, State::Fix);
    assert_eq!(
        finding.commands,
        [
            "sudo prlimit --pid $$ --nofile=1000064:1000064",
            "skein --cores 53 --private-fds on"
        ]
    );
    assert_eq!(of(53, PrivateFds::Auto, CONNECTIONS).state, State::Ok);
    assert_eq!(of(53, PrivateFds::Off, CONNECTIONS).state, State::Fix);
    assert_eq!(of(1, PrivateFds::Off, 19_000).state, State::Ok);
    // More than any number of tables holds, and more than one table may be allowed.
    let finding = of(4, PrivateFds::Off, 10_000_000);
    assert_eq!(
        finding.commands,
        ["sudo sysctl -w fs.nr_open=10000064 && sudo prlimit --pid $$ --nofile=10000064:10000064"]
    );
}

#[test]
fn a_ring_that_cannot_be_had_matters_to_those_who_insist_on_it() {
    let mut host = MadeUp::good();
    host.tried.io_uring = Err("Operation not permitted (os error 1)".to_owned());
    let with = |driver| Needs { driver, ..needs() };
    let of = |host: &MadeUp, driver| {
        let findings = host.examine(&with(driver)).findings;
        findings
            .into_iter()
            .find(|finding| finding.check == "io_uring")
            .unwrap()
    };
    assert_eq!(of(&host, Driver::Auto).state, State::Hint);
    assert_eq!(of(&host, Driver::Epoll).state, State::Ok);
    let finding = of(&host, Driver::IoUring);
    assert_eq!(
        (finding.state, &finding.commands[0][..]),
        (State::Fix, "skein --driver epoll")
    );
    host.write("proc/sys/kernel/io_uring_disabled", "2\n");
    let finding = of(&host, Driver::IoUring);
    assert_eq!(finding.commands, ["sudo sysctl -w kernel.io_uring_disabled=0"]);
    assert!(finding.text.contains("kernel.io_uring_disabled is 2"), "{finding:?}");
}

#[test]
fn kernels_that_take_a_sleep_for_a_wait_for_the_disk_are_named() {
    for (release, is_named) in [
        ("6.4.16", false),
        ("6.5.0-14-generic", true),
        ("6.14.1", true),
        ("6.15.0", false),
    ] {
        let host = MadeUp::good();
        host.write("proc/sys/kernel/osrelease", release);
        if is_named {
            let finding = only_finding(&host, &needs());
            assert_eq!((finding.check, finding.state), ("io_uring", State::Hint), "{finding:?}");
            assert_eq!(finding.commands, ["skein --driver epoll"]);
        } else {
            assert_eq!(host.examine(&needs()).fixes_count, 0, "{release}");
            let good = MadeUp::good().examine(&needs()).findings;
            assert_eq!(host.examine(&needs()).findings, good, "{release}");
        }
    }
}

#[test]
fn rings_of_old_kernels_need_memory_they_may_lock() {
    let host = MadeUp::good();
    host.write("proc/sys/kernel/osrelease", "5.10.0-8-amd64\n");
    let finding = only_finding_of(&host, "locked memory");
    assert_eq!(finding.state, State::Hint);
    assert_eq!(finding.commands, ["sudo prlimit --pid $$ --memlock=262144:262144"]);
    host.write("proc/sys/kernel/osrelease", "5.12.0\n");
    assert_eq!(only_finding_of(&host, "locked memory").state, State::Ok);
}

#[test]
fn reserved_ports_are_kept_and_ports_that_are_reserved_or_closed_are_no_matter() {
    let host = MadeUp::good();
    host.write("proc/sys/net/ipv4/ip_local_port_range", "1024 60999\n");
    host.write("proc/sys/net/ipv4/ip_local_reserved_ports", "1800-1900,8083\n");
    let with = |access, wss_port| {
        let config = Config {
            access,
            wss_port,
            ..config()
        };
        let findings = host.examine(&Needs::new(config, 1000)).findings;
        let mut found = findings
            .into_iter()
            .filter(|finding| finding.check.ends_with("port_range"));
        found.next().unwrap().commands
    };
    let command = |ports: &str| {
        [format!(
            "sudo sysctl -w net.ipv4.ip_local_reserved_ports=1800-1900,8083,{ports}"
        )]
    };
    assert_eq!(with(Access::Platform, Some(8084)), command("8883,8084,8080"));
    assert_eq!(with(Access::Open, None), command("8883"));
}

#[test]
fn what_may_be_promised_is_bounded_where_the_kernel_promises_no_more_than_it_has() {
    let host = MadeUp::good();
    host.write("proc/sys/vm/overcommit_memory", "2\n");
    assert_eq!(only_finding_of(&host, "vm.overcommit_memory").state, State::Ok);
    host.write(
        "proc/meminfo",
        "MemAvailable: 20000000 kB\nCommitLimit: 1200000 kB\nCommitted_AS: 1000000 kB\n",
    );
    let finding = only_finding_of(&host, "vm.overcommit_memory");
    assert_eq!(
        (finding.state, &finding.commands[0][..]),
        (State::Fix, "sudo sysctl -w vm.overcommit_memory=0")
    );
}

#[test]
fn a_full_disk_is_to_be_mended_and_a_nearly_full_one_worth_a_word() {
    let mut host = MadeUp::good();
    for (free, state) in [
        (Some(1 << 20), State::Fix),
        (Some(100 << 20), State::Hint),
        (None, State::Unknown),
    ] {
        host.tried.data_bytes_free = free;
        assert_eq!(only_finding(&host, &needs()).state, state);
    }
}

#[test]
fn a_host_that_hides_everything_is_unknown_and_not_at_fault() {
    let host = MadeUp {
        directory: tempfile::tempdir().unwrap(),
        ..MadeUp::good()
    };
    let examination = host.examine(&needs());
    assert_eq!(examination.fixes_count, 0, "{examination}");
    let unknown = examination
        .findings
        .iter()
        .filter(|finding| finding.state == State::Unknown);
    assert!(unknown.count() > 10, "{examination}");
}

#[test]
fn fewer_connections_ask_for_less() {
    let host = MadeUp::good();
    host.write("proc/sys/net/core/somaxconn", "128\n");
    host.write("proc/sys/fs/file-max", "20000\n");
    host.write("proc/meminfo", "MemAvailable: 200000 kB\n");
    let examination = host.examine(&Needs::new(config(), 1_000));
    assert_eq!(examination.fixes_count, 0, "{examination}");
}
