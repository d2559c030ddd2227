//! What `skein account` asks: a socket in the data directory of a running broker, and the requests that come over it.
//!
//! Owns    the socket file.
//! Called  by `server`: [`AdminSocket::bind`] when the store is open, [`AdminSocket::serve`] on the control thread. By `skein
//!         account`, which asks over the socket, or, where no broker runs, has the request [answered alone](alone::answer).
//! Holds   - only the user that runs the broker, and root, get an answer: the file's mode says so, and the kernel who it is;
//!         - a request is a line of JSON, and so is its answer; a line that is too long, too late or no request ends the
//!           connection;
//!         - tokens are in an answer only where they were asked for, or are new.

pub mod alone;

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::desk::{AccountSettings, Desk, DeskError, NewAccount, Tokens};
use crate::limits::{ADMIN_ANSWER_MS, ADMIN_CONNECTIONS_MAX, ADMIN_LINE_BYTES_MAX, ADMIN_REQUEST_MS};
use crate::registry::account::{Account, Token};
use crate::registry::channel::ChannelId;
use crate::registry::quota::OwnQuotas;

/// In the data directory.
const SOCKET: &str = "admin.sock";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Add { account: NewAccount },
    List { show_tokens: bool },
    RotateToken { user_id: String, tokens: Tokens },
    Suspend { user_id: String },
    Resume { user_id: String },
    Remove { user_id: String },
    Set { user_id: String, settings: AccountSettings },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    Done {
        /// All of them, or the one that was changed, as it is now or was last.
        accounts: Vec<Shown>,
        /// Where the broker can be reached, if one runs.
        endpoints: Option<Endpoints>,
    },
    Refused {
        /// One sentence.
        why: String,
        /// Whether whoever asked can do something about it.
        is_operators: bool,
    },
}

/// An account, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub user_id: String,
    /// Masked, unless they were asked for or are new.
    pub device_token: String,
    pub api_token: String,
    pub suspended: bool,
    pub devices: u32,
    pub devices_max: u32,
    pub events: usize,
    pub storage_bytes_max: u64,
    /// Its own; null: as the broker has it.
    pub quotas: OwnQuotas,
    pub default_channel: Option<ChannelId>,
    pub email1: String,
    pub email2: String,
    pub organization: String,
    pub locale: String,
    pub user_alias: String,
    /// Milliseconds of Unix time.
    pub created_ms: u64,
}

/// What whoever pastes a command needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    pub host: String,
    /// Of MQTT over TCP; `None`: it is off.
    pub mqtt_port: Option<u16>,
    /// `http://127.0.0.1:8080`; `None`: the API is off.
    pub api_url: Option<String>,
    /// Of the API, if it has one that nobody else vouches for.
    pub ca_file: Option<PathBuf>,
}

/// What a request comes to.
pub async fn answer(desk: &Desk, endpoints: Option<&Endpoints>, request: Request) -> Answer {
    let done = |accounts| Answer::Done {
        accounts,
        endpoints: endpoints.cloned(),
    };
    let has_new_tokens = matches!(request, Request::Add { .. } | Request::RotateToken { .. });
    let changed = match request {
        Request::List { show_tokens } => {
            let accounts = desk.accounts();
            let shown = accounts.iter().map(|tenant| {
                let events = desk.events(tenant.id()).len();
                Shown::new(&tenant.account, tenant.device_count(), events, show_tokens)
            });
            return done(shown.collect());
        }
        Request::Add { account } => desk.add_account(account).await,
        Request::RotateToken { user_id, tokens } => desk.rotate(&user_id, tokens).await,
        Request::Suspend { user_id } => desk.suspend(&user_id).await,
        Request::Resume { user_id } => desk.resume(&user_id).await,
        Request::Set { user_id, settings } => desk.change_account(&user_id, settings).await,
        Request::Remove { user_id } => desk.remove(&user_id).await,
    };
    match changed {
        Ok(account) => {
            // One that was removed has none any more.
            let devices = desk
                .accounts()
                .tenant(account.id)
                .map_or(0, |tenant| tenant.device_count());
            let events = desk.events(account.id).len();
            done(vec![Shown::new(&account, devices, events, has_new_tokens)])
        }
        Err(error) => Answer::Refused {
            is_operators: !matches!(error, DeskError::Stopping | DeskError::Unreadable(_)),
            why: error.to_string(),
        },
    }
}

impl Shown {
    fn new(account: &Account, devices: u32, events: usize, show_tokens: bool) -> Shown {
        let token = |token: &Token| match show_tokens {
            true => token.as_str().to_owned(),
            false => token.masked().to_string(),
        };
        Shown {
            user_id: account.user_id.to_string(),
            device_token: token(&account.device_token),
            api_token: token(&account.api_token),
            suspended: account.is_suspended,
            devices,
            devices_max: account.devices_max,
            events,
            storage_bytes_max: account.storage_bytes_max,
            quotas: account.quotas,
            default_channel: account.default_channel,
            email1: account.email1.clone(),
            email2: account.email2.clone(),
            organization: account.organization.clone(),
            locale: account.locale.clone(),
            user_alias: account.user_alias.clone(),
            created_ms: account.created_ms,
        }
    }
}

/// Where the socket of a data directory is, for a system call: the name of a socket has 107 bytes at most, and that of a
/// directory may be longer.
pub struct SocketPath {
    path: PathBuf,
    /// The directory, if `path` is by way of its descriptor.
    _dir: Option<File>,
}

impl SocketPath {
    const BYTES_MAX: usize = 107;

    pub fn of(dir: &Path) -> io::Result<SocketPath> {
        // The name beside it, while it is made, is longer.
        let longest = dir.join(format!("{SOCKET}.{}", u32::MAX));
        if longest.as_os_str().len() <= SocketPath::BYTES_MAX {
            let (path, _dir) = (dir.join(SOCKET), None);
            return Ok(SocketPath { path, _dir });
        }
        let dir = File::open(dir)?;
        let path = PathBuf::from(format!("/proc/thread-self/fd/{}/{SOCKET}", dir.as_raw_fd()));
        Ok(SocketPath { path, _dir: Some(dir) })
    }

    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

/// The socket of a running broker.
pub struct AdminSocket {
    listener: StdListener,
    file: SocketFile,
    endpoints: Endpoints,
}

/// Goes with the broker.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl AdminSocket {
    /// In place of one that a broker left behind. The directory is this broker's: it has the lock of its store.
    pub fn bind(dir: &Path, endpoints: Endpoints) -> io::Result<AdminSocket> {
        let path = SocketPath::of(dir)?;
        let beside = path.as_path().with_extension(format!("sock.{}", std::process::id()));
        let _ = fs::remove_file(&beside);
        let listener = StdListener::bind(&beside)?;
        let file = SocketFile(dir.join(SOCKET));
        // It appears with its mode, and under a name that nobody has open.
        fs::set_permissions(&beside, Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&beside, path.as_path()))
            .inspect_err(|_| drop(fs::remove_file(&beside)))?;
        listener.set_nonblocking(true)?;
        Ok(AdminSocket {
            listener,
            file,
            endpoints,
        })
    }

    /// On the control thread, until that ends.
    pub async fn serve(self, desk: Desk) {
        let AdminSocket {
            listener,
            file,
            endpoints,
        } = self;
        let listener = match UnixListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the socket for `skein account` cannot be served"),
        };
        let endpoints = Arc::new(endpoints);
        let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (desk, endpoints) = (desk.clone(), Arc::clone(&endpoints));
                    tokio::spawn(async move {
                        let _place = place;
                        if let Err(error) = converse(stream, &desk, &endpoints).await {
                            tracing::debug!(%error, "a connection of `skein account` has ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, path = %file.0.display(), "nobody can connect to the socket for `skein account`");
                    tokio::time::sleep(Duration::from_millis(ADMIN_REQUEST_MS)).await;
                }
            }
        }
    }
}

async fn converse(stream: UnixStream, desk: &Desk, endpoints: &Endpoints) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("it is another user's"));
    }
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut read).take(ADMIN_LINE_BYTES_MAX as u64);
        let reading = bounded.read_until(b'\n', &mut line);
        tokio::time::timeout(Duration::from_millis(ADMIN_REQUEST_MS), reading).await??;
        let request = match line.last() {
            None => return Ok(()),
            Some(b'\n') => serde_json::from_slice(&line).map_err(|error| format!("this is no request: {error}")),
            Some(_) if line.len() == ADMIN_LINE_BYTES_MAX => Err("the request is too long".to_owned()),
            Some(_) => return Ok(()),
        };
        let is_request = request.is_ok();
        let answer = match request {
            Ok(request) => answer(desk, Some(endpoints), request).await,
            Err(why) => Answer::Refused {
                why,
                is_operators: true,
            },
        };
        let mut text = serde_json::to_vec(&answer).expect("it is made of texts and numbers");
        text.push(b'\n');
        tokio::time::timeout(Duration::from_millis(ADMIN_ANSWER_MS), write.write_all(&text)).await??;
        if !is_request {
            return Ok(());
        }
    }
}

/// Two commands that show that an account works, to be pasted: a device that sends, and an application that looks.
pub fn commands_to_paste(account: &Shown, endpoints: &Endpoints) -> String {
    let Endpoints {
        host,
        mqtt_port,
        api_url,
        ca_file,
    } = endpoints;
    let mut text = String::new();
    if let Some(port) = mqtt_port {
        let Shown {
            user_id, device_token, ..
        } = account;
        text += &format!(
            "mosquitto_pub -h {host} -p {port} -u {user_id} -P {device_token} -t '{device_token}/json/pump-07' -m '{{\"temp\":20}}'\n"
        );
    }
    let trust = match ca_file {
        Some(file) => format!(" --cacert {}", quoted(file)),
        None => String::new(),
    };
    if let Some(url) = api_url {
        let token = &account.api_token;
        text += &format!("curl{trust} -H 'X-APITOKEN: {token}' {url}/v2/device\n");
    }
    text
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    match text.contains(|c: char| !c.is_ascii_alphanumeric() && !"/._-".contains(c)) {
        true => format!("'{}'", text.replace('\'', "'\\''")),
        false => text.into_owned(),
    }
}

/// What a first start prints, once, of the account that it made.
pub fn first_account(account: &Account, endpoints: &Endpoints) -> String {
    let shown = Shown::new(account, 0, 0, true);
    let commands = commands_to_paste(&shown, endpoints);
    let commands: Vec<String> = commands.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "There was no account, so this one was made:\n  account       {}\n  device token  {}\n  API token     {}\n  \
         `skein account list --show-tokens` shows them again. Try:\n{}",
        shown.user_id,
        shown.device_token,
        shown.api_token,
        commands.concat()
    )
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::http::desk::tests::desk;

    fn endpoints() -> Endpoints {
        Endpoints {
            host: "localhost".to_owned(),
            mqtt_port: Some(1883),
            api_url: Some("http://127.0.0.1:8080".to_owned()),
            ca_file: None,
        }
    }

    /// What runs the closure, which blocks, while a broker serves the socket of `dir`.
    fn beside_broker<T: Send + 'static>(dir: &Path, ask: impl FnOnce(PathBuf) -> T + Send + 'static) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let socket = AdminSocket::bind(dir, endpoints()).unwrap();
            let path = dir.join(SOCKET);
            let serving = tokio::spawn(socket.serve(desk().0));
            let asked = tokio::task::spawn_blocking(move || ask(path)).await.unwrap();
            serving.abort();
            asked
        })
    }

    /// All that comes back, until the other side closes.
    fn exchange(path: &Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        // It may close before it has read all.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    }

    fn ask(path: &Path, request: &Request) -> Answer {
        let line = serde_json::to_string(request).unwrap() + "\n";
        serde_json::from_str(&exchange(path, line.as_bytes())).unwrap()
    }

    fn one(answer: Answer) -> Shown {
        match answer {
            Answer::Done { mut accounts, .. } if accounts.len() == 1 => accounts.remove(0),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn accounts_are_managed_over_the_socket_and_tokens_shown_where_they_are_new_or_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        beside_broker(dir.path(), |path| {
            let account = NewAccount {
                user_id: Some("U004217".to_owned()),
                ..NewAccount::default()
            };
            let added = one(ask(&path, &Request::Add { account }));
            assert_eq!((&*added.user_id, added.suspended, added.devices), ("U004217", false, 0));
            assert!(Token::parse(&added.device_token).is_some() && Token::parse(&added.api_token).is_some());
            let list = |show_tokens| one(ask(&path, &Request::List { show_tokens }));
            assert_eq!(list(true), added);
            assert_eq!(list(false).device_token, format!("{}…", &added.device_token[..4]));

            let user_id = || "U004217".to_owned();
            let tokens = Tokens::Device;
            let rotated = one(ask(
                &path,
                &Request::RotateToken {
                    user_id: user_id(),
                    tokens,
                },
            ));
            assert_ne!(rotated.device_token, added.device_token);
            assert_eq!(rotated.api_token, added.api_token);
            let suspended = one(ask(&path, &Request::Suspend { user_id: user_id() }));
            assert!(suspended.suspended && suspended.device_token.ends_with('…'));
            assert!(!one(ask(&path, &Request::Resume { user_id: user_id() })).suspended);
            let settings = AccountSettings {
                devices_max: Some(5),
                ..AccountSettings::default()
            };
            let set = Request::Set {
                user_id: user_id(),
                settings,
            };
            assert_eq!(one(ask(&path, &set)).devices_max, 5);
            one(ask(&path, &Request::Remove { user_id: user_id() }));
            let gone = ask(&path, &Request::Remove { user_id: user_id() });
            assert!(matches!(gone, Answer::Refused { is_operators: true, .. }), "{gone:?}");
        });
    }

    #[test]
    fn a_connection_may_ask_more_than_once() {
        let dir = tempfile::tempdir().unwrap();
        beside_broker(dir.path(), |path| {
            let mut stream = UnixStream::connect(path).unwrap();
            let mut read = BufReader::new(stream.try_clone().unwrap());
            for _ in 0..3 {
                stream.write_all(b"{\"do\":\"list\",\"show_tokens\":false}\n").unwrap();
                let mut line = String::new();
                read.read_line(&mut line).unwrap();
                assert!(line.starts_with("{\"done\":{\"accounts\":[]"), "{line}");
            }
        });
    }

    #[test]
    fn what_is_no_request_is_answered_with_why_and_ends_its_connection_only() {
        let dir = tempfile::tempdir().unwrap();
        beside_broker(dir.path(), |path| {
            let long = vec![b'x'; 2 * ADMIN_LINE_BYTES_MAX];
            for (bytes, why) in [
                (&b"\n"[..], "this is no request"),
                (b"hello\n", "this is no request"),
                (b"\xff\xfe\0\n", "this is no request"),
                (b"{\"do\":\"format\"}\n", "this is no request"),
                (b"{\"do\":\"suspend\"}\n", "this is no request"),
                (
                    b"{\"do\":\"suspend\",\"user_id\":\"U1\",\"x\":1}\n",
                    "this is no request",
                ),
                (b"GET / HTTP/1.1\r\n\r\n", "this is no request"),
                (&long, "the request is too long"),
            ] {
                let text = exchange(&path, bytes);
                assert_eq!(text.lines().count(), 1, "{text}");
                assert!(text.contains(why), "{text}");
            }
            // Half a line, or nothing at all.
            assert_eq!(exchange(&path, b"{\"do\":"), "");
            assert_eq!(exchange(&path, b""), "");
            let user_id = "U1".to_owned();
            let refused = ask(&path, &Request::Suspend { user_id });
            assert!(matches!(refused, Answer::Refused { why, .. } if why.contains("U and six digits")));
        });
    }

    #[test]
    fn the_socket_takes_the_place_of_a_stale_one_and_goes_with_the_broker() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        drop(StdListener::bind(&path).unwrap());
        assert!(UnixStream::connect(&path).is_err());
        let seen = path.clone();
        beside_broker(dir.path(), move |_| {
            assert_eq!(fs::metadata(&seen).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(UnixStream::connect(&seen).is_ok());
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_with_a_long_name_has_its_socket_too() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(120));
        fs::create_dir(&long).unwrap();
        let asked = long.clone();
        beside_broker(&long, move |_| {
            let path = SocketPath::of(&asked).unwrap();
            let answer = ask(path.as_path(), &Request::List { show_tokens: false });
            assert!(matches!(answer, Answer::Done { .. }));
        });
    }

    #[test]
    fn what_is_to_be_pasted_is_one_line_for_each_command() {
        let token = |byte| Token::from_random([byte; 16]);
        let account = Account::new(
            crate::registry::access::AccountId(1),
            "U004217",
            token(0xa),
            token(0xd),
            0,
        );
        let text = first_account(&account, &endpoints());
        let (api, device) = ("0A".repeat(16), "0D".repeat(16));
        let publish = format!(
            "    mosquitto_pub -h localhost -p 1883 -u U004217 -P {device} -t '{device}/json/pump-07' -m '{{\"temp\":20}}'\n"
        );
        let look = format!("    curl -H 'X-APITOKEN: {api}' http://127.0.0.1:8080/v2/device\n");
        assert!(text.ends_with(&(publish + &look)), "{text}");
        let over_tls = Endpoints {
            mqtt_port: None,
            api_url: Some("https://localhost:8080".to_owned()),
            ca_file: Some("/var/lib/it's/cert.pem".into()),
            ..endpoints()
        };
        let text = commands_to_paste(&Shown::new(&account, 0, 0, true), &over_tls);
        let trust = "curl --cacert '/var/lib/it'\\''s/cert.pem' -H";
        assert!(text.starts_with(trust) && text.lines().count() == 1, "{text}");
    }
}
