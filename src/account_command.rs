//! `skein account`: the accounts of a data directory, beside a running broker or without one.
//!
//! Called  by `main`.
//! Holds   - a running broker makes the changes itself, asked over its socket; without one they are made here;
//!         - tokens are printed when they are new, and by `list --show-tokens`, and at no other time;
//!         - what an account has written of itself cannot steer the operator's terminal.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use skein::config::Size;
use skein::http::admin::{Answer, Endpoints, Request, Shown, SocketPath, alone, commands_to_paste};
use skein::http::desk::{AccountSettings, Bound, DefaultChannel, NewAccount, QuotaSettings, Tokens, UserChange};
use skein::registry::channel::ChannelId;
use skein::store::error::StoreError;

/// For the broker's answer: a commit may take its time on a busy disk.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

#[derive(Args)]
pub struct AccountCommand {
    #[command(subcommand)]
    action: Action,

    /// Directory of the data, as the broker was given it
    #[arg(
        long,
        env = "SKEIN_DATA_DIR",
        value_name = "DIR",
        hide_env = true,
        default_value = "skein-data",
        global = true
    )]
    data_dir: PathBuf,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Make an account, and print its tokens and two commands to try it
    Add {
        /// U and six digits; without it one is chosen
        #[arg(long, value_name = "ID")]
        id: Option<String>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Show the accounts
    List {
        /// Print the tokens whole
        #[arg(long)]
        show_tokens: bool,
    },
    /// Give an account new tokens and print them: the device token, unless --api says otherwise
    RotateToken {
        id: String,
        /// The API token
        #[arg(long)]
        api: bool,
        /// The device token: connections that used the old one close
        #[arg(long)]
        device: bool,
    },
    /// Close an account's connections and let nobody of it in; what it has stays
    Suspend { id: String },
    /// Let a suspended account in again
    Resume { id: String },
    /// Remove an account with its devices, channels, data and events
    Remove { id: String },
    /// Change an account's limits, and what it says of itself
    Set {
        id: String,
        #[command(flatten)]
        settings: Settings,
    },
}

#[derive(Args)]
struct Settings {
    /// Devices the account may have
    #[arg(long, value_name = "N")]
    max_devices: Option<u32>,
    /// Bytes its datapoints may take, such as 500MB; then the oldest go
    #[arg(long, value_name = "SIZE")]
    max_storage: Option<Size>,
    /// Connections it may have at a time: a number, 0 for any, or default for what --account-connections says
    #[arg(long, value_name = "N", value_parser = bound)]
    max_connections: Option<Bound<u32>>,
    /// Durable sessions it may have, in place of --account-sessions
    #[arg(long, value_name = "N", value_parser = bound)]
    max_sessions: Option<Bound<u32>>,
    /// Filters it may hold over all its sessions, in place of --account-subscriptions
    #[arg(long, value_name = "N", value_parser = bound)]
    max_subscriptions: Option<Bound<u32>>,
    /// PUBLISH packets it may send in a second, in place of --account-publish-rate
    #[arg(long, value_name = "N", value_parser = bound)]
    max_publish_rate: Option<Bound<u32>>,
    /// Bytes of its messages that may wait or be retained, in place of --account-message-storage
    #[arg(long, value_name = "SIZE", value_parser = bound_bytes)]
    max_message_storage: Option<Bound<u64>>,
    /// Channel that new devices are mapped to, which is made if it is not there; or off
    #[arg(long, value_name = "N", value_parser = default_channel)]
    default_channel: Option<DefaultChannel>,
    /// Addresses for the mails of events
    #[arg(long, value_name = "ADDRESS")]
    email1: Option<String>,
    #[arg(long, value_name = "ADDRESS")]
    email2: Option<String>,
    #[arg(long, value_name = "TEXT")]
    organization: Option<String>,
    /// Time zone, such as Europe/Vienna
    #[arg(long, value_name = "ZONE")]
    locale: Option<String>,
    /// Name to show
    #[arg(long, value_name = "TEXT")]
    alias: Option<String>,
}

fn default_channel(text: &str) -> Result<DefaultChannel, String> {
    match text {
        "off" => Ok(DefaultChannel::Off),
        _ => ChannelId::parse(text)
            .map(DefaultChannel::Channel)
            .ok_or_else(|| format!("`{text}` is no channel: give 0 to {}, or off", ChannelId::MAX)),
    }
}

fn bound(text: &str) -> Result<Bound<u32>, String> {
    let refused = |_| {
        format!(
            "`{text}` is no bound: give 1 to {}, 0 for any number, or default",
            u32::MAX
        )
    };
    match text {
        "default" => Ok(Bound::Default),
        _ => text.parse::<u32>().map(Bound::Own).map_err(refused),
    }
}

fn bound_bytes(text: &str) -> Result<Bound<u64>, String> {
    match text {
        "default" => Ok(Bound::Default),
        _ => match text.parse::<Size>() {
            Ok(size) => Ok(Bound::Own(size.0)),
            Err(why) => Err(format!("{why}; or 0 for any number, or default")),
        },
    }
}

impl From<Settings> for AccountSettings {
    fn from(settings: Settings) -> AccountSettings {
        AccountSettings {
            devices_max: settings.max_devices,
            storage_bytes_max: settings.max_storage.map(|size| size.0),
            quotas: QuotaSettings {
                connections_max: settings.max_connections,
                sessions_max: settings.max_sessions,
                subscriptions_max: settings.max_subscriptions,
                publishes_per_s_max: settings.max_publish_rate,
                kept_bytes_max: settings.max_message_storage,
            },
            default_channel: settings.default_channel,
            user: UserChange {
                email1: settings.email1,
                email2: settings.email2,
                organization: settings.organization,
                locale: settings.locale,
                user_alias: settings.alias,
            },
        }
    }
}

impl Action {
    fn request(self) -> Request {
        match self {
            Action::Add { id, settings } => Request::Add {
                account: NewAccount {
                    user_id: id,
                    settings: settings.into(),
                },
            },
            Action::List { show_tokens } => Request::List { show_tokens },
            Action::RotateToken { id, api, device } => Request::RotateToken {
                user_id: id,
                tokens: match (api, device) {
                    (true, true) => Tokens::Both,
                    (true, false) => Tokens::Api,
                    (false, _) => Tokens::Device,
                },
            },
            Action::Suspend { id } => Request::Suspend { user_id: id },
            Action::Resume { id } => Request::Resume { user_id: id },
            Action::Remove { id } => Request::Remove { user_id: id },
            Action::Set { id, settings } => Request::Set {
                user_id: id,
                settings: settings.into(),
            },
        }
    }
}

/// Why there is no answer: one sentence.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error(
        "the broker on {dir} has no accounts to manage: it is just starting or stopping, or runs with --access open; ask again \
         when it runs with --access platform, or when none runs", dir = dir.display()
    )]
    NotAsked { dir: PathBuf },
    #[error("the broker on {dir} does not answer ({error}); the change may have been made, so look before trying again", dir = dir.display())]
    Silent { dir: PathBuf, error: io::Error },
    #[error("cannot use the socket of the broker on {dir}: {error}; run this as the user that runs the broker", dir = dir.display())]
    NotAllowed { dir: PathBuf, error: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub fn run(command: AccountCommand) -> ExitCode {
    let AccountCommand { action, data_dir, json } = command;
    let request = action.request();
    let answer = match ask(&data_dir, &request) {
        Ok(answer) => answer,
        Err(error @ NoAnswer::Silent { .. }) => return complain(&error.to_string(), ExitCode::FAILURE),
        Err(error) => return complain(&error.to_string(), ExitCode::from(2)),
    };
    let (accounts, endpoints) = match answer {
        Answer::Done { accounts, endpoints } => (accounts, endpoints),
        Answer::Refused { why, is_operators } => {
            let code = if is_operators {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            };
            return complain(&why, code);
        }
    };
    let text = match json {
        true => as_json(&request, &accounts),
        false => for_people(&request, &accounts, &endpoints.unwrap_or_else(assumed)),
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(sentence: &str, code: ExitCode) -> ExitCode {
    // Nothing is left to be done when standard error is closed.
    let _ = writeln!(io::stderr(), "skein: {sentence}");
    code
}

// --- asking ---

/// The broker, if one runs, else the store.
fn ask(dir: &Path, request: &Request) -> Result<Answer, NoAnswer> {
    let silent = |error| NoAnswer::Silent {
        dir: dir.to_owned(),
        error,
    };
    let connected = SocketPath::of(dir).and_then(|path| UnixStream::connect(path.as_path()));
    match connected {
        Ok(stream) => ask_broker(stream, request).map_err(silent),
        // No file, or one that a broker left behind.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            match alone::answer(dir, request.clone()) {
                Err(StoreError::InUse { path }) => Err(NoAnswer::NotAsked { dir: path }),
                answer => Ok(answer?),
            }
        }
        Err(error) => Err(NoAnswer::NotAllowed {
            dir: dir.to_owned(),
            error,
        }),
    }
}

fn ask_broker(mut stream: UnixStream, request: &Request) -> io::Result<Answer> {
    stream.set_read_timeout(Some(ANSWER_WAIT))?;
    stream.set_write_timeout(Some(ANSWER_WAIT))?;
    let line = serde_json::to_string(request).expect("it is made of texts and numbers") + "\n";
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if !answer.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}

// --- printing ---

/// A list for `list`, the account otherwise.
fn as_json(request: &Request, accounts: &[Shown]) -> String {
    let text = match (request, accounts) {
        (Request::List { .. }, _) | (_, []) => serde_json::to_string_pretty(accounts),
        (_, [account, ..]) => serde_json::to_string_pretty(account),
    };
    text.expect("it is made of texts and numbers") + "\n"
}

fn for_people(request: &Request, accounts: &[Shown], endpoints: &Endpoints) -> String {
    let name = |account: &Shown| plain(&account.user_id);
    match (request, accounts) {
        (Request::List { .. }, _) => table(accounts),
        (Request::Add { .. }, [account]) => {
            format!("{}\nTry:\n{}", tokens(account), commands_to_paste(account, endpoints))
        }
        (Request::RotateToken { tokens: which, .. }, [account]) => match which {
            Tokens::Api => format!("API token     {}\n", plain(&account.api_token)),
            Tokens::Device => format!("device token  {}\n", plain(&account.device_token)),
            Tokens::Both => tokens(account),
        },
        (Request::Suspend { .. }, [account]) => format!("{} is suspended\n", name(account)),
        (Request::Resume { .. }, [account]) => format!("{} is let in again\n", name(account)),
        (Request::Remove { .. }, [account]) => format!("{} is removed, with all that it had\n", name(account)),
        (Request::Set { .. }, accounts) => table(accounts),
        (_, _) => String::new(),
    }
}

fn tokens(account: &Shown) -> String {
    format!(
        "account       {}\ndevice token  {}\nAPI token     {}\n",
        plain(&account.user_id),
        plain(&account.device_token),
        plain(&account.api_token)
    )
}

/// Where a broker with default settings would be.
fn assumed() -> Endpoints {
    let config = skein::config::Config::default();
    Endpoints {
        host: "localhost".to_owned(),
        mqtt_port: config.mqtt_port,
        api_url: config.api.port.map(|port| format!("http://127.0.0.1:{port}")),
        ca_file: None,
    }
}

fn table(accounts: &[Shown]) -> String {
    const HEAD: [&str; 9] = [
        "ACCOUNT",
        "STATE",
        "DEVICES",
        "EVENTS",
        "STORAGE",
        "CHANNEL",
        "DEVICE TOKEN",
        "API TOKEN",
        "NAME",
    ];
    let row = |account: &Shown| -> [String; HEAD.len()] {
        [
            plain(&account.user_id),
            if account.suspended { "suspended" } else { "active" }.to_owned(),
            format!("{}/{}", account.devices, account.devices_max),
            account.events.to_string(),
            Size(account.storage_bytes_max).to_string(),
            account
                .default_channel
                .map_or_else(|| "-".to_owned(), |channel| channel.number().to_string()),
            plain(&account.device_token),
            plain(&account.api_token),
            plain(&account.user_alias),
        ]
    };
    let rows = std::iter::once(HEAD.map(str::to_owned)).chain(accounts.iter().map(row));
    let rows: Vec<_> = rows.collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Without what a terminal takes for a command.
fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein::registry::quota::OwnQuotas;

    fn shown(user_id: &str, user_alias: &str) -> Shown {
        Shown {
            user_id: user_id.to_owned(),
            device_token: "AAAA…".to_owned(),
            api_token: "BBBB…".to_owned(),
            suspended: user_alias.is_empty(),
            devices: 3,
            devices_max: 1_000,
            events: 2,
            storage_bytes_max: 5 << 30,
            quotas: OwnQuotas::default(),
            default_channel: ChannelId::new(7),
            email1: String::new(),
            email2: String::new(),
            organization: String::new(),
            locale: "UTC".to_owned(),
            user_alias: user_alias.to_owned(),
            created_ms: 0,
        }
    }

    #[test]
    fn the_list_is_aligned_and_steers_no_terminal() {
        let accounts = [shown("U000001", "Gewächs\u{1b}[2Jhaus\r\n"), shown("U000002", "")];
        assert_eq!(
            table(&accounts),
            "ACCOUNT  STATE      DEVICES  EVENTS  STORAGE  CHANNEL  DEVICE TOKEN  API TOKEN  NAME\n\
             U000001  active     3/1000   2       5 GiB    7        AAAA…         BBBB…      Gewächs\u{fffd}[2Jhaus\u{fffd}\u{fffd}\n\
             U000002  suspended  3/1000   2       5 GiB    7        AAAA…         BBBB…\n"
        );
    }

    #[test]
    fn json_is_a_list_for_list_and_one_account_otherwise() {
        let accounts = [shown("U000001", "")];
        let list: Vec<Shown> =
            serde_json::from_str(&as_json(&Request::List { show_tokens: false }, &accounts)).unwrap();
        let user_id = "U000001".to_owned();
        let one: Shown = serde_json::from_str(&as_json(&Request::Suspend { user_id }, &accounts)).unwrap();
        assert_eq!((list, &one), (accounts.to_vec(), &accounts[0]));
        assert_eq!(as_json(&Request::List { show_tokens: false }, &[]), "[]\n");
    }

    #[test]
    fn a_bound_is_a_number_or_the_default() {
        assert_eq!(bound("default"), Ok(Bound::Default));
        assert_eq!(bound("0"), Ok(Bound::Own(0)));
        assert_eq!(bound_bytes("1 KiB"), Ok(Bound::Own(1_024)));
        assert_eq!(bound_bytes("default"), Ok(Bound::Default));
        for bad in ["", "-1", "off", "4294967296"] {
            assert!(
                bound(bad).unwrap_err().contains("0 for any number, or default"),
                "{bad}"
            );
        }
        assert!(
            bound_bytes("lots")
                .unwrap_err()
                .ends_with("0 for any number, or default")
        );
    }

    #[test]
    fn a_default_channel_is_a_number_or_off() {
        assert_eq!(default_channel("off"), Ok(DefaultChannel::Off));
        assert_eq!(
            default_channel("0"),
            Ok(DefaultChannel::Channel(ChannelId::new(0).unwrap()))
        );
        for bad in ["", "-1", "on", "2147483648"] {
            assert!(
                default_channel(bad).unwrap_err().contains("0 to 2147483647, or off"),
                "{bad}"
            );
        }
    }
}
