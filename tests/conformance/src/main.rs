//! `skein-conformance`: flags in, a table and a score out.
//!
//! Exit codes: 0 every statement that was tested passes, 1 one fails, 2 the flags are wrong or there is no broker to ask (the
//! sentence is on stderr).

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use conformance::bench::Settings;

/// Asks an MQTT broker for every normative statement of MQTT 3.1.1, and for MQTT 3.1
#[derive(Debug, Parser)]
#[command(name = "skein-conformance", version)]
struct Flags {
    /// The broker, as HOST:PORT
    #[arg(value_name = "ADDR", conflicts_with_all = ["host", "port"])]
    address: Option<String>,
    /// Its host
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Its port of MQTT over TCP
    #[arg(long, default_value_t = 1883)]
    port: u16,
    /// Its port of MQTT over WebSocket; without it the statements about WebSocket are skipped
    #[arg(long, value_name = "PORT")]
    ws_port: Option<u16>,
    /// What is asked for on that port
    #[arg(long, value_name = "PATH", default_value = "/mqtt")]
    ws_path: String,
    /// The user name of every CONNECT
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The password that goes with it
    #[arg(long, env = "SKEIN_CONFORMANCE_PASSWORD", hide_env_values = true, requires = "user")]
    password: Option<String>,
    /// What every topic must begin with here, such as the device token of an account; cases that need other topics are skipped
    #[arg(long, value_name = "PREFIX", default_value = "")]
    topic_prefix: String,
    /// A topic that these credentials may not use; with --topic-prefix one outside the prefix, unless given
    #[arg(long, value_name = "TOPIC")]
    forbidden_topic: Option<String>,
    /// Only this statement, or those that a pattern with * fits: MQTT-3.1.2-24, 3.8.*, V31-*; may be given several times
    #[arg(long, value_name = "STATEMENT")]
    only: Vec<String>,
    /// Seconds that what must come may take; a broker that does not close a connection costs one of these
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    timeout: f64,
    /// Milliseconds for which nothing must come to count as nothing
    #[arg(long, value_name = "MS", default_value_t = 300)]
    silence: u64,
    /// Cases at a time
    #[arg(long, value_name = "COUNT", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Writes score and statements to a file, - for standard output instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What the file calls the broker, instead of its address
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Prints the statements and asks nobody
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match ask(&Flags::parse()) {
        Ok(code) => code,
        Err(sentence) => {
            eprintln!("skein-conformance: {sentence}");
            ExitCode::from(2)
        }
    }
}

fn ask(flags: &Flags) -> Result<ExitCode, String> {
    if flags.list {
        return list(&flags.only);
    }
    let settings = settings(flags)?;
    let report = conformance::run(&settings, &flags.only)?;
    let address = settings.address.to_string();
    let is_stdout = flags.json.as_ref().is_some_and(|path| path.as_os_str() == "-");
    if let Some(path) = &flags.json {
        let json = report.json(flags.name.as_deref().unwrap_or(&address));
        if is_stdout {
            print!("{json}");
        } else {
            fs::write(path, json).map_err(|error| format!("--json {}: {error}", path.display()))?;
        }
    }
    if !is_stdout {
        print!("{report}");
    }
    Ok(if report.has_failed() {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    })
}

fn list(only: &[String]) -> Result<ExitCode, String> {
    let statements = conformance::list(only);
    if statements.is_empty() {
        return Err(format!("--only {} is no statement", only.join(" --only ")));
    }
    for (id, sentence, untestable) in statements {
        match untestable {
            None => println!("{id:<14}  {sentence}"),
            Some(reason) => println!("{id:<14}  {sentence} (not testable from outside: {reason})"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn settings(flags: &Flags) -> Result<Settings, String> {
    let text = match &flags.address {
        Some(address) => address.clone(),
        None if flags.host.contains(':') && !flags.host.starts_with('[') => format!("[{}]:{}", flags.host, flags.port),
        None => format!("{}:{}", flags.host, flags.port),
    };
    let address = resolve(&text)?;
    let seconds = |value: f64| (0.1..=600.0).contains(&value).then(|| Duration::from_secs_f64(value));
    let timeout = seconds(flags.timeout).ok_or(format!("--timeout {}: give 0.1 to 600 seconds", flags.timeout))?;
    if !(20..=60_000).contains(&flags.silence) {
        return Err(format!("--silence {}: give 20 to 60000 milliseconds", flags.silence));
    }
    let prefix = flags.topic_prefix.trim_end_matches('/');
    let is_topic = |topic: &str| topic.len() < 60_000 && !topic.contains(['+', '#', '\0']);
    if !is_topic(prefix) {
        return Err("--topic-prefix is the beginning of a topic name: it has no + and no #".into());
    }
    if flags
        .forbidden_topic
        .as_deref()
        .is_some_and(|topic| topic.is_empty() || !is_topic(topic))
    {
        return Err("--forbidden-topic is a topic name: it has no + and no #".into());
    }
    if flags.user.as_ref().is_some_and(|user| user.len() > 1000)
        || flags.password.as_ref().is_some_and(|p| p.len() > 60_000)
    {
        return Err("--user and --password are longer than a CONNECT can say".into());
    }
    Ok(Settings {
        websocket: flags.ws_port.map(|port| SocketAddr::new(address.ip(), port)),
        websocket_path: flags.ws_path.clone(),
        user: flags.user.clone(),
        password: flags.password.clone(),
        topic_prefix: if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        },
        forbidden_topic: flags.forbidden_topic.clone(),
        timeout,
        silence: Duration::from_millis(flags.silence),
        jobs: usize::from(flags.jobs),
        ..Settings::at(address)
    })
}

fn resolve(text: &str) -> Result<SocketAddr, String> {
    let mut found = text
        .to_socket_addrs()
        .map_err(|error| format!("{text} is no HOST:PORT: {error}"))?;
    found.next().ok_or(format!("{text} names no address"))
}
