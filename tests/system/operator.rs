//! What whoever runs the broker sees: the ready file, the words at the start, refusals that say what to change.
//! Settings that are refused before anything is opened are in `tests/command_line.rs`.

use crate::broker::{Broker, SETTINGS, Transport, patience};
use crate::clients::{Agent, INSTALL, Library, Message, hello, mosquitto_pub};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A start that ends by itself, in a directory of its own.
fn skein(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_skein"))
        .args(arguments)
        .current_dir(&directory)
        .output()
        .unwrap()
}

/// The one sentence, whatever the log has said before it, of a start that is refused with exit code 2. Ports that are not
/// spoken of are any free ones.
fn refusal(arguments: &[&str]) -> String {
    let flags = Transport::ALL.map(Transport::flag);
    let mut arguments = [arguments, &["--access", "open"]].concat();
    for flag in &flags {
        if !arguments.contains(&&flag[..]) {
            arguments.extend([flag, "0"]);
        }
    }
    let output = skein(&arguments);
    let written = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{written}");
    assert!(output.stdout.is_empty());
    let sentences: Vec<_> = written.lines().filter(|line| line.starts_with("skein: ")).collect();
    let [sentence] = sentences[..] else {
        panic!("not one sentence: {written}")
    };
    assert!(written.ends_with(&format!("{sentence}\n")), "{written}");
    sentence.to_owned()
}

#[test]
fn a_port_in_use_is_one_sentence_that_names_its_flag_and_exit_code_2() {
    for transport in Transport::ALL {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let sentence = refusal(&[&transport.flag(), &port]);
        assert!(
            sentence.contains(&format!("127.0.0.1:{port} is in use"))
                && sentence.contains(&format!("give {} another number", transport.flag())),
            "{sentence}"
        );
    }
}

/// Every core listens with SO_REUSEPORT, so the kernel would let a second broker share the port.
#[test]
fn a_second_broker_on_the_same_port_is_refused() {
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        let cores = setting.cores.to_string();
        for transport in Transport::ALL {
            let port = broker.port_of(transport).to_string();
            let sentence = refusal(&[&transport.flag(), &port, "--cores", &cores]);
            assert!(
                sentence.contains(&format!("127.0.0.1:{port} is in use")) && sentence.contains(&transport.flag()),
                "{sentence}"
            );
        }
        broker.stop();
    }
}

#[test]
fn a_bad_start_says_what_to_change() {
    let flags = Transport::ALL.map(Transport::flag);
    let nothing_open = refusal(&flags.each_ref().map(|flag| [&flag[..], "off"]).concat());
    assert!(
        nothing_open.contains("no port is open") && flags.iter().all(|flag| nothing_open.contains(flag)),
        "{nothing_open}"
    );

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("skein.toml");
    std::fs::write(&file, "cores = 2\n\nmqtt-prot = 1883\n").unwrap();
    let file = file.to_str().unwrap();
    let sentence = refusal(&["--config", file]);
    assert!(
        sentence.contains(&format!("{file}, line 3: ")) && sentence.contains("mqtt-prot"),
        "{sentence}"
    );

    let sentence = refusal(&["--mqtt-port", "0", "--ready-file", "/nowhere/ready.json"]);
    assert!(
        sentence.contains("/nowhere/ready.json") && sentence.contains("--ready-file"),
        "{sentence}"
    );

    // 192.0.2.1 is set aside for documentation (RFC 5737): no host has it.
    let sentence = refusal(&["--mqtt-port", "0", "--bind", "192.0.2.1"]);
    assert!(
        sentence.contains("192.0.2.1") && sentence.contains("--bind"),
        "{sentence}"
    );

    let output = skein(&["--mqtt-prt", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr).unwrap().contains("--mqtt-port"),
        "the flag that was meant is not named"
    );
}

#[test]
fn the_version_is_the_package_version() {
    let output = skein(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("skein {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn the_ready_file_names_every_port_and_is_gone_after_the_stop() {
    for (setting, off) in SETTINGS.into_iter().zip(Transport::ALL) {
        for further in [&[][..], &[&off.flag(), "off"]] {
            let broker = Broker::start(setting, further);
            let path = broker.ready_file();
            let ready: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let mut expected = json!({"pid": broker.pid(), "api": null});
            for transport in Transport::ALL {
                expected[transport.name()] = match further {
                    [_, "off"] if transport == off => Value::Null,
                    _ => broker.port_of(transport).into(),
                };
            }
            assert_eq!(ready, expected);
            broker.stop();
            assert!(!path.exists());
        }
    }
}

/// The ports of a network namespace of its own; where there can be none, those of a loopback address that nobody else uses.
#[test]
fn a_start_without_flags_opens_the_four_ports_of_mqtt_and_the_api() {
    opens_its_default_ports(None, Some(8080));
}

#[test]
fn a_start_for_anyone_opens_the_four_ports_of_mqtt() {
    opens_its_default_ports(Some("open"), None);
}

fn opens_its_default_ports(access: Option<&str>, api: Option<u16>) {
    let directory = tempfile::tempdir().unwrap();
    let ready_file = directory.path().join("ready.json");
    let in_namespace = |words: &str| {
        let mut command = Command::new("unshare");
        command.args(["-rn", "sh", "-c", &format!("ip link set lo up && {words}")]);
        command
    };
    let is_alone = in_namespace("true")
        .output()
        .is_ok_and(|output| output.status.success());
    let (mut command, host) = match is_alone {
        true => {
            let mut command = in_namespace("exec \"$0\"");
            command.arg(env!("CARGO_BIN_EXE_skein"));
            (command, Ipv4Addr::LOCALHOST)
        }
        false => {
            let [high, low] = (std::process::id() as u16).to_be_bytes();
            let host = Ipv4Addr::new(127, 77, high, low.max(1));
            let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
            command.args(["--bind", &host.to_string(), "--api-bind", &host.to_string()]);
            (command, host)
        }
    };
    let (stdout, stderr) = (directory.path().join("stdout"), directory.path().join("stderr"));
    let mut process = command
        .current_dir(&directory)
        .env("SKEIN_READY_FILE", &ready_file)
        .envs(access.map(|access| ("SKEIN_ACCESS", access)))
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !ready_file.exists() && began.elapsed() < patience(Duration::from_secs(20)) {
        sleep(Duration::from_millis(10));
    }
    let ready = std::fs::read(&ready_file);
    let said = std::fs::read_to_string(&stderr).unwrap();
    let listening = std::fs::read_to_string(format!("/proc/{}/net/tcp", process.id())).unwrap();
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(0), "{said}");

    let ready = ready.unwrap_or_else(|error| panic!("no ready file: {error}: {said}"));
    let ready: Value = serde_json::from_slice(&ready).unwrap();
    let ports = [1883, 8883, 8083, 8084];
    assert_eq!(Transport::ALL.map(|transport| ready[transport.name()].clone()), ports);
    assert_eq!(ready["api"], json!(api));
    let stdout = std::fs::read_to_string(stdout).unwrap();
    for port in ports.into_iter().chain(api) {
        if Some(port) != api {
            assert!(stdout.contains(&format!("on {host}:{port} over ")), "{stdout}");
        }
        let address = u32::from_ne_bytes(host.octets());
        let socket = format!(" {address:08X}:{port:04X} 00000000:0000 0A ");
        assert!(listening.contains(&socket), "no socket listens on {port}: {listening}");
    }
}

#[test]
fn the_start_says_where_it_listens_what_to_try_and_that_only_this_host_can_connect() {
    let broker = Broker::start(SETTINGS[0], &[]);
    let port = broker.port;
    let written = broker.stop();
    assert!(written.contains(&format!("127.0.0.1:{port}")), "{written}");
    assert!(
        written.contains(&format!("mosquitto_sub -h 127.0.0.1 -p {port}")),
        "{written}"
    );
    assert!(
        written.contains("Only this host can connect") && written.contains("--bind 0.0.0.0"),
        "{written}"
    );

    let broker = Broker::start(SETTINGS[0], &["--bind", "0.0.0.0"]);
    assert!(std::net::TcpStream::connect(SocketAddr::from(([127, 0, 0, 2], broker.port))).is_ok());
    let written = broker.stop();
    assert!(!written.contains("Only this host"), "{written}");
}

/// As they stand, in the directory the broker was started in. Both commands end by themselves after a message.
#[test]
fn the_commands_that_the_start_tells_to_try_receive_messages() {
    let broker = Broker::start(SETTINGS[0], &[]);
    mosquitto_pub(&broker, &[], &Message::new("greeting", "hello", 1, true));
    let written = broker.written();
    let commands: Vec<_> = written
        .lines()
        .filter_map(|line| line.trim().strip_prefix("try: "))
        .collect();
    assert_eq!(commands.len(), 2, "{written}");
    assert!(commands[1].contains("--cafile"), "{written}");
    for command in commands {
        let output = Command::new("sh")
            .args(["-c", &format!("{command} -C 1 -W 20")])
            .current_dir(broker.directory())
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}: {INSTALL}");
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "greeting hello\n",
            "{command}"
        );
    }
    broker.stop();
}

/// A client that is connected learns of the stop by its connection's end; [`Broker::stop`] checks time and exit code.
#[test]
fn a_signal_closes_connections_and_ends_with_exit_code_0() {
    let mut agent = Agent::start(Library::MqttJs);
    for setting in SETTINGS {
        let broker = Broker::start(setting, &[]);
        agent.connect("a", &broker, hello("a"));
        let address = broker.address();
        broker.stop();
        agent.closed("a");
        TcpListener::bind(address).expect("the port is free again");

        let mut broker = Broker::start(setting, &[]);
        broker.signal(Signal::INT);
        let status = broker
            .await_end(Duration::from_secs(10))
            .expect("SIGINT ends the broker");
        assert_eq!(status.code(), Some(0));
    }
}

/// `wa` of `top` and /proc/pressure/io are what operators look at first; a broker that has nothing to do has no part in them.
#[test]
fn a_core_that_sleeps_on_its_ring_is_not_taken_for_one_that_waits_for_the_disk() {
    const IO_URING_ENTER: &str = "426";
    const NO_IOWAIT: u64 = 1 << 7;
    let release = rustix::system::uname().release().to_str().unwrap().to_owned();
    let numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut version = numbers.map(|number| number.parse::<u32>().unwrap());
    let can_be_told = (version.next().unwrap(), version.next().unwrap()) >= (6, 15);
    let setting = SETTINGS
        .iter()
        .find(|setting| setting.driver == "io_uring" && setting.cores > 1);
    let setting = *setting.unwrap();
    let broker = Broker::start(setting, &[]);
    let asleep = || -> Vec<u64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", broker.pid())).unwrap();
        let flags = tasks.flatten().filter_map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            let call = fs::read_to_string(task.path().join("syscall")).ok()?;
            let mut words = call.split(' ');
            let is_asleep = name.starts_with("core-") && words.next()? == IO_URING_ENTER;
            // The ring, how many operations it is given, how many have to come, the flags.
            let flags = words.nth(3).filter(|_| is_asleep)?;
            u64::from_str_radix(flags.strip_prefix("0x")?, 16).ok()
        });
        flags.collect()
    };
    let until = Instant::now() + patience(Duration::from_secs(5));
    let mut flags = asleep();
    while flags.len() < usize::from(setting.cores) && Instant::now() < until {
        sleep(Duration::from_millis(20));
        flags = asleep();
    }
    assert_eq!(flags.len(), usize::from(setting.cores), "cores asleep, {setting:?}");
    assert!(
        flags.iter().all(|flags| (flags & NO_IOWAIT != 0) == can_be_told),
        "{flags:x?}, Linux {release}"
    );
    broker.stop();
}
