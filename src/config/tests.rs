//! Flags, environment and file: what they say, which goes first, and what is said of what they say wrong.

use std::fs;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    raw: Raw,
}

fn flags(args: &[&str]) -> Raw {
    Flags::try_parse_from(std::iter::once(&"skein").chain(args))
        .unwrap()
        .raw
}

fn from_file(text: &str) -> Result<Config, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    let name = file.path().display().to_string();
    Config::load(Raw::default(), Some(file.path())).map_err(|error| error.to_string().replace(&name, "FILE"))
}

/// Keys that the embedded file has as comments, and the examples there.
const COMMENTED: [(&str, &str); 8] = [
    ("cores", "2"),
    ("api-bind", "\"0.0.0.0\""),
    ("smtp-relay", "\"smtp://user:password@mail.example:587\""),
    ("client-id-max", "23"),
    ("tls-cert", "\"/etc/skein/cert.pem\""),
    ("tls-key", "\"/etc/skein/key.pem\""),
    ("tls-client-ca", "\"/etc/skein/clients-ca.pem\""),
    ("ready-file", "\"/run/skein/ready.json\""),
];

#[test]
fn tables_part_by_themselves_only_where_one_table_is_too_small() {
    let config = |cores, private_fds| Config {
        cores,
        private_fds,
        connections_max: 100_000,
        ..Config::default()
    };
    assert!(config(2, PrivateFds::Auto).parts_descriptors(20_000));
    assert!(!config(2, PrivateFds::Auto).parts_descriptors(1_000_000));
    assert!(!config(1, PrivateFds::Auto).parts_descriptors(20_000));
    assert!(config(1, PrivateFds::On).parts_descriptors(1_000_000));
    assert!(!config(2, PrivateFds::Off).parts_descriptors(20_000));
}

#[test]
fn the_embedded_file_says_what_the_defaults_are() {
    let raw = parse_toml(DEFAULT_TOML, "default.toml").unwrap();
    assert_eq!(Config::check(raw.clone()).unwrap(), Config::default());
    assert_eq!(Config::check(Raw::default()).unwrap(), Config::default());
    // Every key is there and set, but for those that have no fixed default, which are there as comments.
    let Raw {
        cores: None,
        tls_cert: None,
        tls_key: None,
        tls_client_ca: None,
        ready_file: None,
        api_bind: None,
        smtp_relay: None,
        client_id_max: None,
        ..
    } = raw
    else {
        panic!("these depend on the host")
    };
    let command = <Flags as clap::CommandFactory>::command();
    for flag in command.get_arguments().filter(|flag| flag.get_id() != "help") {
        let key = flag.get_long().unwrap();
        let is_comment = COMMENTED.iter().any(|(commented, _)| *commented == key);
        let start = format!("\n{}{key} = ", if is_comment { "# " } else { "" });
        assert!(DEFAULT_TOML.contains(&start), "{key} is not in default.toml");
        assert_eq!(
            flag.get_env().unwrap().to_str().unwrap(),
            format!("SKEIN_{}", key.to_uppercase().replace('-', "_"))
        );
    }
}

#[test]
fn the_examples_in_the_comments_of_the_embedded_file_are_valid() {
    let mut text = DEFAULT_TOML.to_owned();
    for (key, example) in COMMENTED {
        let line = format!("\n# {key} = {example}\n");
        assert!(text.contains(&line), "{key}");
        text = text.replace(&line, &line.replace("# ", ""));
    }
    let config = from_file(&text).unwrap();
    assert_eq!(config.cores, 2);
    assert_eq!(config.tls_certificate.unwrap().key, Path::new("/etc/skein/key.pem"));
    assert_eq!(
        config.tls_client_ca.as_deref(),
        Some(Path::new("/etc/skein/clients-ca.pem"))
    );
    assert_eq!(config.ready_file, Some(PathBuf::from("/run/skein/ready.json")));
}

#[test]
fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "max-inflight = 10\nmax-queued = 20\nmqtt-port = \"off\"\n").unwrap();
    let config = Config::load(flags(&["--max-queued", "30", "--mqtt-port", "0"]), Some(file.path())).unwrap();
    assert_eq!(config.inflight_max, 10);
    assert_eq!(config.queued_max, 30);
    assert_eq!(config.mqtt_port, Some(0));
    assert_eq!(config.outbox_bytes_max, limits::OUTBOX_BYTES_MAX);
}

#[test]
fn every_setting_of_the_upper_layer_wins() {
    let upper = flags(&[
        "--access=open",
        "--cores=3",
        "--driver=io_uring",
        "--private-fds=on",
        "--max-connections=7",
        "--shard-levels=2",
        "--bind=::1",
        "--mqtt-port=99",
        "--mqtts-port=98",
        "--ws-port=off",
        "--wss-port=0",
        "--api-port=97",
        "--api-bind=10.0.0.1",
        "--api-tls",
        "--api-rate=5",
        "--connector-rate=0",
        "--api-max-body=2KiB",
        "--v1",
        "--webhook-allow=10.0.0.0/8,::1",
        "--smtp-relay=smtp://mail",
        "--mail-from=a@b.example",
        "--tls-cert=/c",
        "--tls-key=/k",
        "--tls-client-ca=/a",
        "--tls-client-cn-as-username",
        "--ws-allow-origin=https://a.example,null",
        "--proxy-protocol=mqtt,wss",
        "--data-dir=/d",
        "--durability=process",
        "--map-size=2GiB",
        "--session-expiry=7d",
        "--retained-memory=1MiB",
        "--overflow-wait=2s",
        "--max-packet=1MB",
        "--max-inflight=8",
        "--max-queued=9",
        "--max-queued-bytes=2KiB",
        "--max-publish-rate=12",
        "--write-interval=200us",
        "--max-outbox=1 MiB",
        "--max-subscriptions=11",
        "--client-id-max=23",
        "--account-connections=13",
        "--account-sessions=14",
        "--account-subscriptions=15",
        "--account-publish-rate=16",
        "--account-message-storage=17KiB",
        "--connect-timeout=500ms",
        "--log=debug",
        "--log-format=json",
        "--ready-file=/r",
    ]);
    let lower = parse_toml(DEFAULT_TOML, "default.toml").unwrap();
    assert_eq!(upper.clone().over(lower.clone()), upper);
    assert_eq!(Raw::default().over(upper.clone()), upper);
    let config = Config::check(upper.over(lower)).unwrap();
    let expected = Config {
        access: Access::Open,
        cores: 3,
        driver: Driver::IoUring,
        private_fds: PrivateFds::On,
        connections_max: 7,
        shard_levels: 2,
        bind: "::1".parse().unwrap(),
        mqtt_port: Some(99),
        mqtts_port: Some(98),
        ws_port: None,
        wss_port: Some(0),
        api: ApiConfig {
            port: Some(97),
            bind: "10.0.0.1".parse().unwrap(),
            is_tls: true,
            rate: 5,
            connector_rate: 0,
            body_bytes_max: 2048,
            v1: true,
            webhook_allow: Networks::These(vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]),
            smtp_relay: Some("smtp://mail".to_owned()),
            mail_from: "a@b.example".to_owned(),
        },
        tls_certificate: Some(CertificateFiles {
            certificate: "/c".into(),
            key: "/k".into(),
        }),
        tls_client_ca: Some("/a".into()),
        tls_client_cn_as_username: true,
        ws_allow_origin: vec!["https://a.example".into(), "null".into()],
        proxy_protocol: ProxyPorts {
            mqtt: true,
            wss: true,
            ..ProxyPorts::default()
        },
        data_dir: "/d".into(),
        durability: Durability::Process,
        map_bytes: 2 << 30,
        session_expiry: Some(Duration::from_secs(7 * 86_400)),
        retained_memory_bytes_max: 1 << 20,
        overflow_wait: Duration::from_secs(2),
        packet_bytes_max: 1_000_000,
        inflight_max: 8,
        queued_max: 9,
        queued_bytes_max: 2048,
        publishes_per_s_max: 12,
        write_interval: Duration::from_micros(200),
        outbox_bytes_max: 1 << 20,
        subscriptions_per_session_max: 11,
        client_id_chars_max: 23,
        account_quotas: Quotas {
            connections_max: 13,
            sessions_max: 14,
            subscriptions_max: 15,
            publishes_per_s_max: 16,
            kept_bytes_max: 17 * 1024,
        },
        connect_timeout: Duration::from_millis(500),
        log: LogLevel::Debug,
        log_format: LogFormat::Json,
        ready_file: Some("/r".into()),
    };
    assert_eq!(config, expected);
}

#[test]
fn a_problem_in_the_file_names_the_file_the_line_and_what_to_change() {
    for (text, sentence) in [
        (
            "access = \"open\"\n\nmax-pakcet = 5\n",
            "FILE, line 3: there is no key `max-pakcet`; `skein config` prints every key there is",
        ),
        (
            "\nmax-packet = \"5 cows\"",
            "FILE, line 2: `5 cows` is no size: give a whole number of bytes, or one with a unit of B, KB, MB, GB, KiB, \
             MiB, GiB",
        ),
        (
            "connect-timeout = \"10\"",
            "FILE, line 1: `10` is no duration: give numbers with a unit, such as 10s, 500ms or 1m 30s",
        ),
        (
            "mqtt-port = 70000",
            "FILE, line 1: `70000` is no port: give 1 to 65535, 0 for any free port, or off",
        ),
        (
            "mqtt-port = true",
            "FILE, line 1: expected a whole number, or a text in quotes",
        ),
        (
            "proxy-protocol = \"http\"",
            "FILE, line 1: `http` is no list of ports: give some of mqtt, mqtts, ws, wss with commas between, or all, or \
             none",
        ),
        (
            "ws-allow-origin = 1",
            "FILE, line 1: expected a text in quotes, or a list of them",
        ),
        (
            "driver = \"kqueue\"",
            "FILE, line 1: unknown variant `kqueue`, expected one of `auto`, `io_uring`, `epoll`",
        ),
        (
            "# é\ncores = -1",
            "FILE, line 2: invalid value: integer `-1`, expected u64",
        ),
    ] {
        assert_eq!(from_file(text).unwrap_err(), sentence, "{text}");
    }
    for text in [
        "cores = ",
        "cores = 1\ncores = 2",
        "[section]\ncores = 1",
        "\u{0}",
        "= 1",
    ] {
        assert!(from_file(text).unwrap_err().starts_with("FILE, line "), "{text}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load(Raw::default(), Some(Path::new("/nowhere/skein.toml")))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cannot read the settings file /nowhere/skein.toml: "),
        "{error}"
    );
}

#[test]
fn a_value_out_of_range_names_its_flag_and_the_range() {
    for (args, sentence) in [
        (["--cores", "0"], "--cores 0 is out of range: give 1 to 256"),
        (["--cores", "257"], "--cores 257 is out of range: give 1 to 256"),
        (
            ["--max-inflight", "4096"],
            "--max-inflight 4096 is out of range: give 1 to 4095",
        ),
        (
            ["--max-packet", "257 MiB"],
            "--max-packet 257 MiB is out of range: give 1 KiB to 256 MiB",
        ),
        (
            ["--max-packet", "1000"],
            "--max-packet 1000 B is out of range: give 1 KiB to 256 MiB",
        ),
        (
            ["--client-id-max", "22"],
            "--client-id-max 22 is out of range: give 23 to 65535",
        ),
        (
            ["--connect-timeout", "1ms"],
            "--connect-timeout 1ms is out of range: give 250ms to 10m",
        ),
        (
            ["--shard-levels", "0"],
            "--shard-levels 0 is out of range: give 1 to 16",
        ),
        (
            ["--max-connections", "0"],
            "--max-connections 0 is out of range: give 1 to 100000000",
        ),
        (
            ["--max-outbox", "1"],
            "--max-outbox 1 B is out of range: give 4 KiB to 1 GiB",
        ),
    ] {
        assert_eq!(Config::load(flags(&args), None).unwrap_err().to_string(), sentence);
    }
    assert_eq!(
        Config::load(flags(&["--max-inflight", "4095"]), None)
            .unwrap()
            .inflight_max,
        4095
    );
}

#[test]
fn settings_that_do_not_go_together_say_which_to_change() {
    let off = ["--mqtt-port=off", "--mqtts-port=off", "--ws-port=off", "--wss-port=off"];
    let half = "a certificate and its key come together, so give both or none";
    for (args, sentence) in [
        (
            &off[..],
            "no port is open: give one of --mqtt-port, --mqtts-port, --ws-port and --wss-port a number, or 0 for any \
             free port"
                .to_owned(),
        ),
        (
            &["--ws-port=1883"],
            "--mqtt-port and --ws-port are both 1883: give one of them another number, or off".to_owned(),
        ),
        (
            &["--wss-port=9000", "--mqtts-port=9000", "--mqtt-port=off"],
            "--mqtts-port and --wss-port are both 9000: give one of them another number, or off".to_owned(),
        ),
        (
            &["--tls-cert=/c"],
            format!("--tls-cert is given and --tls-key is not: {half}"),
        ),
        (
            &["--tls-key=/k"],
            format!("--tls-key is given and --tls-cert is not: {half}"),
        ),
        (
            &["--tls-client-cn-as-username"],
            "--tls-client-cn-as-username needs clients that show a certificate: give --tls-client-ca the file of those \
             who issue them, or leave it out"
                .to_owned(),
        ),
    ] {
        assert_eq!(
            Config::load(flags(args), None).unwrap_err().to_string(),
            sentence,
            "{args:?}"
        );
    }
    for args in [
        &off[1..],
        &off[..3],
        &["--mqtt-port=0", "--mqtts-port=0", "--ws-port=0", "--wss-port=0"],
        &["--tls-client-cn-as-username", "--tls-client-ca=/a"],
        &["--tls-client-cn-as-username=false"],
    ] {
        assert!(Config::load(flags(args), None).is_ok(), "{args:?}");
    }
}

#[test]
fn a_switch_needs_no_value_and_a_file_may_list() {
    let is_on = |args: &[&str]| flags(args).tls_client_cn_as_username;
    assert_eq!(is_on(&[]), None);
    assert_eq!(
        is_on(&["--tls-client-cn-as-username", "--tls-client-ca", "/a"]),
        Some(true)
    );
    assert_eq!(is_on(&["--tls-client-cn-as-username", "false"]), Some(false));
    let config = from_file(
        "tls-client-ca = \"/a\"\ntls-client-cn-as-username = true\nproxy-protocol = [\"mqtts\"]\n\
         ws-allow-origin = [\"https://a.example\", \"https://b.example\"]\n",
    )
    .unwrap();
    assert!(config.tls_client_cn_as_username && config.proxy_protocol.mqtts && !config.proxy_protocol.mqtt);
    assert_eq!(config.ws_allow_origin, ["https://a.example", "https://b.example"]);
}

#[test]
fn a_largest_packet_is_one_the_protocol_can_carry() {
    assert!(256 * KIB * KIB <= limits::REMAINING_LENGTH_MAX as u64 + 5);
    assert!(INFLIGHT_MAX_MAX as usize * limits::INFLIGHT_SPAN_FACTOR < u16::MAX as usize);
}
